"""Check the options of `normstudy export`, write the export, and remove everything if writing fails."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from normstudy import config as cfg
from normstudy.analysis.grid import count_text
from normstudy.analysis.select import Where
from normstudy.errors import ConfigError
from normstudy.exports.source import choose
from normstudy.study import files, paths, tables

# Each format has a module whose name contains the format's library, such as to_wandb. The module's function
# write(source, target, scratch) creates the file or folder `target`. Its temporary files go into the folder `scratch`.
FORMATS = ("csv", "tensorboard", "wandb-offline", "duckdb")


def export_study(study: Path, *, to: str, out: Path | None, where: Where, join: bool = False) -> str:
    """Write runs of a study in the format `to`. Return a text that says what was written and how to open the result.

    out: the file or folder to create, by default STUDY/export/TO. where: which runs to write (see `select`). join:
    whether to add columns of `runs` to all other tables, as `load(join=True)` does. Raises ConfigError for an
    unknown format, for `join` with a format other than csv and duckdb, for a missing library, for an `out` that exists
    or cannot be written, for a folder that is not a study, and if `where` selects no run.
    """
    cfg.one_of("--to", to, FORMATS, {"wandb": "wandb-offline"})
    if join and to not in ("csv", "duckdb"):  # formats that consist of tables
        raise ConfigError(f"--join has no effect with --to {to}, which writes the configuration anyway: leave it out")
    tables.check_is_study(study)
    out = out or paths.check_own_folders(study) / "export" / to
    check_free(out)
    paths.check_outside_of_studies(out, "another --out")
    library = to.removesuffix("-offline")
    try:  # imported late, because the library is optional and slow to import
        module = importlib.import_module(f"normstudy.exports.to_{library}")
    except ImportError as error:
        what = f"--to {to} needs a library that cannot be imported ({error}): pip install {library}"
        raise ConfigError(what) from error
    source = choose(study, where, join=join)
    with placed(out) as (target, scratch):
        module.write(source, target, scratch)
    runs = count_text(source.runs.num_rows, "run")
    return f"Exported {runs} of {study} to {out}. Open the result with this command:\n{_opens(to, out)}"


def _opens(to: str, out: Path) -> str:
    """Return the command that opens the export."""
    duckdb = f"import duckdb; study = duckdb.connect({str(out)!r}, read_only=True); print(study.sql('from runs'))"
    return {
        "csv": "python -c " + quote(f"import pandas; print(pandas.read_csv({str(out / 'runs.csv')!r}))"),
        "tensorboard": f"tensorboard --logdir {quote(str(out))}",
        "wandb-offline": f"wandb sync {quote(str(out / 'wandb'))}/offline-run-*",
        "duckdb": "python -c " + quote(duckdb),
    }[to]


def check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists: give another --out, or remove the existing one")


@contextlib.contextmanager
def placed(out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a path to write and a scratch folder. At the end, rename the path to `out`. On error, remove everything."""
    above = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.scratch_folder(out.parent, out.name) as part:
            (part / "scratch").mkdir()
            yield part / "new", part / "scratch"
            for path in [part / "new", *(part / "new").rglob("*")]:
                if not path.is_symlink():
                    files.fsync(path)
            check_free(out)  # os.rename would replace an `out` that another process has created since
            os.rename(part / "new", out)
            files.fsync(out.parent)
    except BaseException as error:
        for folder in above:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            why = os.strerror(error.errno) if error.errno else error
            do = f"{files.remedy(error)}, or give another --out"
            raise ConfigError(f"{out} cannot be written: {why}. No partial result is left. What to do: {do}") from error
        raise
