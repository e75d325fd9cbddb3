"""`normstudy export`: the tables of a study as files of another tool.

Everything is written beside its place and moved there at the end: under the name asked for there is never half of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from normstudy import config as cfg
from normstudy.config import ConfigError
from normstudy.exports.source import Source, choose
from normstudy.study import files, paths, tables


class Format(NamedTuple):
    """write(source, target, scratch) makes the file or folder `target`; scratch is an empty folder for anything else.

    opens(out): the command that opens it. needs: what pip installs for it, None where normstudy itself needs it.
    """

    write: Callable[[Source, Path, Path], None]
    opens: Callable[[Path], str]
    needs: str | None = None


def export_study(study: Path, *, to: str, out: Path | None, where: dict[str, str]) -> str:
    """Write the runs of a study as `to`; returns what was written where, and the command that opens it.

    out: what is made, by default STUDY/export/TO; where: column -> value, the runs that take part. Raises ConfigError
    for an unknown format, one whose library is not installed, a place that is taken or cannot be written, a folder
    that is no study, and what `where` does not allow.
    """
    cfg.one_of("--to", to, tuple(FORMATS), {"wandb": "wandb-offline"})
    tables.check_is_study(study)
    out = study / "export" / to if out is None else out
    check_free(out)
    paths.check_outside_of_studies(out, "another --out")
    form = _format(to)
    source = choose(study, where)
    with placed(out) as (target, scratch):
        form.write(source, target, scratch)
    runs = f"{source.n_runs} run{'s' if source.n_runs > 1 else ''}"
    return f"{runs} of {study} in {out}. Open it with\n{form.opens(out)}"


# ---- formats ------------------------------------------------------------------------------------------


def _csv() -> Format:
    from normstudy.exports import to_csv

    return Format(to_csv.write, to_csv.opens)


def _duckdb() -> Format:
    from normstudy.exports import to_duckdb

    return Format(to_duckdb.write, to_duckdb.opens)


def _tensorboard() -> Format:
    from normstudy.exports import to_tensorboard

    return Format(to_tensorboard.write, to_tensorboard.opens)


def _wandb() -> Format:
    from normstudy.exports import to_wandb

    return Format(to_wandb.write, to_wandb.opens)


# Each is imported when it is asked for: the libraries are optional, and slow to start.
FORMATS = {"csv": _csv, "tensorboard": _tensorboard, "wandb-offline": _wandb, "duckdb": _duckdb}
NEEDS = {"tensorboard": "tensorboard", "wandb-offline": "wandb", "duckdb": "duckdb"}


def _format(to: str) -> Format:
    try:
        return FORMATS[to]()
    except ImportError as error:
        if to not in NEEDS:
            raise
        raise ConfigError(
            f"--to {to} needs a library that cannot be used ({error}): pip install {NEEDS[to]}"
        ) from error


# ---- places -------------------------------------------------------------------------------------------


def check_free(out: Path) -> None:
    """Raise a ConfigError where something is at `out`."""
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists: give another --out, or remove it")


@contextlib.contextmanager
def placed(out: Path) -> Iterator[tuple[Path, Path]]:
    """Two paths beside `out`: what is made at the first is moved to `out`, the second is a folder for scratch.

    Where that fails, nothing is left; raises ConfigError for a disk that does not take it.
    """
    part = out.with_name(f"{out.name}.{socket.gethostname()}-{os.getpid()}.part")
    above = [folder for folder in out.parents if not folder.exists()]
    try:
        (part / "scratch").mkdir(parents=True)
        yield part / "new", part / "scratch"
        _make_durable(part / "new")
        check_free(out)  # somebody may have made it meanwhile, and a rename would replace it
        os.rename(part / "new", out)
        files.fsync(out.parent)
        shutil.rmtree(part, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        for folder in above:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            told = os.strerror(error.errno) if error.errno else error
            raise ConfigError(
                f"{out} cannot be written: {told}. Nothing of it is left; {files.remedy(error)}, or give another --out"
            ) from error
        raise


def _make_durable(new: Path) -> None:
    for path in [new, *new.rglob("*")]:
        if not path.is_symlink():
            files.fsync(path)
