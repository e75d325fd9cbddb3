"""Where results come from: what was asked, by which versions, from which commit."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from normstudy import files, store
from normstudy.config import RunConfig

Request = dict[str, object]  # "command": the command line, "overrides": list[str]


def record(
    study_dir: Path,
    request: Request,
    batches: Sequence[Sequence[str]],
    runs: Mapping[str, RunConfig],
    how: dict[str, str],
) -> None:
    """Keep what was asked under sweeps/: one Parquet file, a row a planned run, the request in its metadata.

    batches: the run ids of each; runs: all planned, finished ones too; how: execution settings.
    """
    batch_of = {run_id: n for n, batch in enumerate(batches) for run_id in batch}
    overrides = request.get("overrides", [])
    asked = {
        "command": str(request.get("command", "")),
        "overrides": shlex.join(str(o) for o in overrides) if isinstance(overrides, list) else str(overrides),
        "python": platform.python_version(),
        "normstudy": version("normstudy"),
        "torch": version("torch"),
        **how,
    }
    table = pa.table(
        {
            "run_id": pa.array(list(runs), pa.string()),
            "batch": pa.array([batch_of.get(i) for i in runs], pa.int32()),
            "n_steps": pa.array([config.schedule.n_steps for config in runs.values()], pa.int32()),
        }
    ).replace_schema_metadata(asked)
    stamp = store.now().strftime("%Y%m%dT%H%M%S.%f")
    folder = study_dir / "sweeps"
    folder.mkdir(exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    files.place(study_dir, f"sweeps/{stamp}.parquet", bytes(sink.getvalue()))


def git_commit() -> str | None:
    """The commit of this package's checkout, with -dirty where it has changes; None outside a checkout."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            out = subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return out.stdout.strip() if out.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None  # installed: a checkout around site-packages is another project's
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", str(here.parent)) else commit
