"""Record why runs crashed and what each sweep requested, and find the git commit of this package.

The traceback of a run's n-th try is in state/logs/<run_id>-<n>.txt, and a sweep's command line, overrides, software
versions and plan are in sweeps/.
"""

import datetime
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from normstudy.config import RunConfig
from normstudy.study import files, parquet, schema, tables

LOGS = "state/logs"
# The columns of a sweep's record, which has one row per planned run. `batch` is null for runs that had finished.
RECORD = pa.schema([pa.field("run_id", pa.string(), nullable=False), ("batch", pa.int32()), ("n_steps", pa.int32())])


def record_failure(study_dir: Path, run_id: str, config: RunConfig, details: str) -> int:
    """Set an unfinished run's status to `failed`, store the traceback `details`, and return its number of crashes."""
    before = parquet.read_row(study_dir, run_id) or {}
    if before.get("status") == "done":
        return tries_of(study_dir)[run_id]
    number = tries_of(study_dir)[run_id] + 1
    with files.storing(study_dir):
        (study_dir / LOGS).mkdir(parents=True, exist_ok=True)
        files.place(study_dir, f"{LOGS}/{run_id}-{number}.txt", details.encode())
    now = {"run_id": run_id, "status": "failed", "finished_at": tables.now()}
    tables.write_runs(study_dir, [{**before, **schema.config_columns(config), **now}])
    return number


def tries_of(study_dir: Path) -> Counter[str]:
    """Return run_id -> number of crashes, counted from the logs. A copy of a log, e.g. `a-1 (1).txt`, is ignored."""
    names = (path.stem.rpartition("-") for path in (study_dir / LOGS).glob("*.txt"))
    return Counter(run_id for run_id, _, number in names if number.isdecimal())


# Keys: "command" (the command line, as text), "overrides" (a list of texts), for a search also "search" (its settings).
Request = dict[str, Any]


def record_request(
    study_dir: Path, request: Request, batches: Sequence[Sequence[str]], runs: Mapping[str, RunConfig], **how: str
) -> None:
    """Write a sweep's request to sweeps/: a Parquet file with one row per planned run, and the request as metadata.

    batches: the run_ids of each batch to train; runs: all planned runs, finished or not; how: execution settings.
    """
    batch_of = {run_id: n for n, batch in enumerate(batches) for run_id in batch}
    asked = {
        "command": str(request.get("command", "")),
        "overrides": shlex.join(map(str, request.get("overrides", []))),
        "python": platform.python_version(), "normstudy": version("normstudy"), "torch": version("torch"), **how,
    }  # fmt: skip
    steps = [config.schedule.n_steps for config in runs.values()]
    rows = {"run_id": list(runs), "batch": [batch_of.get(i) for i in runs], "n_steps": steps}
    data = parquet.bytes_of(pa.table(rows, RECORD.with_metadata(asked)), write_page_checksum=True)
    stamp = tables.now().strftime("%Y%m%dT%H%M%S.%f")
    (study_dir / "sweeps").mkdir(exist_ok=True)
    files.place(study_dir, f"sweeps/{stamp}.parquet", data)


class SweepRecord(NamedTuple):
    """What a sweep recorded in sweeps/."""

    began: float  # when the sweep began, in seconds since 1970
    command: str
    trains: frozenset[str]  # run_ids of the runs that the sweep had to train


def began_of(name: str) -> float | None:
    """Return when a sweep began, in seconds since 1970, given its record's file name; None for any other file name."""
    try:
        stamp = datetime.datetime.strptime(name, "%Y%m%dT%H%M%S.%f.parquet")
    except ValueError:
        return None
    return stamp.replace(tzinfo=datetime.UTC).timestamp()


def paths_of(study_dir: Path) -> list[Path]:
    """Return the paths of the records in sweeps/, oldest first. Copies, such as `a (1).parquet`, are ignored."""
    return sorted(path for path in (study_dir / "sweeps").glob("*.parquet") if began_of(path.name) is not None)


def read_record(path: Path) -> tuple[SweepRecord, dict[str, int | None]]:
    """Read a sweep's record; also returns run_id -> n_steps of the planned runs (None if unknown). Raises Damaged."""
    with files.reading(path, path.parents[1]):
        table = parquet.read(path)
        if "n_steps" not in table.column_names:
            table = table.append_column("n_steps", pa.nulls(len(table), pa.int32()))
        ids, batches, steps = table.select(RECORD.names).cast(RECORD).to_pydict().values()
    command = (table.schema.metadata or {}).get(b"command", b"").decode(errors="replace")
    trains = frozenset(i for i, batch in zip(ids, batches, strict=True) if batch is not None)
    return SweepRecord(began_of(path.name) or 0.0, command, trains), dict(zip(ids, steps, strict=True))


def git_commit() -> str | None:
    """Return the package's git commit, with -dirty if a package file has changed; None outside of a git checkout."""
    package = str(Path(__file__).parents[1])

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", package, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails if the checkout is that of another project
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--", package) else commit
    except (OSError, subprocess.CalledProcessError):
        return None
