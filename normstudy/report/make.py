"""Make the page of studies, as text that a notebook shows, or as a file."""

from __future__ import annotations

import contextlib
import functools
import html
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from normstudy.analysis.grid import count_text
from normstudy.analysis.select import Where
from normstudy.errors import ConfigError
from normstudy.processes import Child

if TYPE_CHECKING:
    from normstudy.report.charts import Compiled

MOST_NAME = 100  # letters in the name of a file that is named after several studies


@dataclass(frozen=True, repr=False)
class Report:
    """Hold a page. html: its whole text. A notebook shows it in a frame."""

    folders: tuple[Path, ...]
    runs: int
    html: str

    def save(self, path: Path | str | None = None) -> Path:
        """Write the page, and return its path, by default report.html in the study's folder.

        The page of several studies lies beside the first, under their names. Raises ConfigError if this fails.
        """
        folder = self.folders[0]
        names = "+".join(one.resolve().name for one in self.folders)[:MOST_NAME]
        usual = folder / "report.html" if len(self.folders) == 1 else folder.parent / f"{names}.html"
        path = usual if path is None else Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(self.html, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}. Choose another --out") from error
        return path

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.folders))
        return f"Report of {names}: {count_text(self.runs, 'run')}, {len(self.html) / 1e6:.1f} MB; .save() writes it"

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.html)}" width="100%" height="900" title="{self!r}"></iframe>'


def report(folders: Sequence[Path | str], where: Where = ()) -> Report:
    """Make the page of one study or more. where: which runs it shows (see `select`).

    Raises ConfigError for a folder that is not a study, for one that is given twice, if there is no run, and without
    the libraries of the extra `report`.
    """
    child = None
    with contextlib.suppress(OSError):  # if no second process can start, this one compiles the charts
        child = Child(_compile)
    try:
        from normstudy.report import page, read

        paths = tuple(map(Path, folders))
        bundle = read.read(paths, where)
        return Report(paths, len(bundle.runs), page.render(bundle, where, functools.partial(_compiled, child)))
    except ImportError as error:
        raise ConfigError(
            f"a report needs a library that cannot be imported ({error}): pip install 'normstudy[report]'"
        ) from error
    finally:
        if child is not None:
            child.close()


def _compile(pipe: Connection) -> None:
    with contextlib.suppress(Exception):  # the parent process then does it itself, and says what is wrong
        from normstudy.report.charts import compiled

        pipe.send(compiled())


def _compiled(child: Child | None) -> Compiled:
    """Return the charts that the child process compiled, or compile them here."""
    with contextlib.suppress(EOFError, OSError):
        if child is not None:
            found: Compiled = child.pipe.recv()
            return found
    from normstudy.report.charts import compiled

    return compiled()
