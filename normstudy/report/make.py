"""Make the page of one or more studies. A notebook can show the page or write it to a file."""

import contextlib
import html
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy.analysis.grid import count_text
from normstudy.analysis.select import Where
from normstudy.errors import ConfigError
from normstudy.processes import Child
from normstudy.study import files

if TYPE_CHECKING:
    from normstudy.report.charts import Compiled

MOST_NAME = 100  # letters in the longest name of a file that is named after several studies
NEEDS = ("altair", "jinja2", "vl_convert")  # what the extra `report` installs
_known: list["Compiled"] = []  # the compiled charts, after this process has made its first page


@dataclass(frozen=True, repr=False)
class Report:
    """A page, which a notebook shows in a frame. html: the text of the whole page."""

    folders: tuple[Path, ...]
    runs: int
    html: str

    def save(self, path: Path | str | None = None) -> Path:
        """Write the page to `path`, by default report.html in the study's folder, and return the path.

        By default, a page of several studies is named after all the studies, and is written into the folder that
        contains the first study's folder. Raises ConfigError if the file cannot be written.
        """
        folder = self.folders[0]
        names = "+".join(one.resolve().name for one in self.folders)[:MOST_NAME]
        usual = folder / "report.html" if len(self.folders) == 1 else folder.parent / f"{names}.html"
        path = usual if path is None else Path(path)
        try:
            if path.exists() and not path.is_file():
                raise ConfigError(f"{path} is a folder, a pipe or a device: choose another --out")
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.scratch_folder(path.parent, "report") as folder:
                (folder / "page").write_text(self.html, encoding="utf-8")
                (folder / "page").replace(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}. Choose another --out") from error
        return path

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.folders))
        return f"Report of {names}: {count_text(self.runs, 'run')}, {len(self.html) / 1e6:.1f} MB; .save() writes it"

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.html)}" width="100%" height="900" title="{self!r}"></iframe>'


def report(folders: Sequence[Path | str], where: Where = ()) -> Report:
    """Make the page of one study or more. where: which runs the page shows (see `select`).

    Raises ConfigError for a wrong or repeated folder, if no run is found, or if the extra `report` is not installed.
    """
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"a report needs {', '.join(missing)}: pip install 'normstudy[report]'")
    child = None
    if not _known:
        with contextlib.suppress(OSError):  # if no second process can start, this process compiles
            child = Child(_compile)
    try:
        from normstudy.report import page, read

        paths = tuple(map(Path, folders))
        bundle = read.read(paths, where)
        return Report(paths, len(bundle.runs), page.render(bundle, where, lambda: _compiled(child)))
    finally:
        if child is not None:
            child.close()


def _compile(pipe: Connection) -> None:
    with contextlib.suppress(Exception):  # the parent process then compiles, and reports the error
        from normstudy.report.charts import compiled

        pipe.send(compiled())


def _compiled(child: Child | None) -> "Compiled":
    """Return the charts that an earlier page or the child process compiled. If there are none, compile them here."""
    with contextlib.suppress(EOFError, OSError):
        if child is not None:
            _known.append(child.pipe.recv())
    if not _known:
        from normstudy.report.charts import compiled

        _known.append(compiled())
    return _known[0]
