"""Record why runs crashed and what each sweep requested, and find the git commit of this package.

A crashed run has the status `failed`; the traceback of its n-th try is in state/logs/<run_id>-<n>.txt. Each sweep
writes its command line, overrides, software versions and plan to sweeps/.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from normstudy.config import RunConfig
from normstudy.study import files, parquet, schema, tables

LOGS = "state/logs"


def record_failure(study_dir: Path, run_id: str, config: RunConfig, details: str) -> int:
    """Set an unfinished run's status to `failed` and store the traceback `details`; returns how often the run crashed.

    Raises StorageError if a file cannot be written.
    """
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
    """Return run_id -> number of crashes, counted from the logs."""
    return Counter(path.stem.rpartition("-")[0] for path in (study_dir / LOGS).glob("*.txt"))


# Keys: "command" (the command line, as text), "overrides" (a list of texts), and of a search "search" (its settings).
Request = dict[str, object]


def record_request(
    study_dir: Path, request: Request, batches: Sequence[Sequence[str]], runs: Mapping[str, RunConfig], **how: str
) -> None:
    """Write a sweep's request to sweeps/: a Parquet file with one row per planned run, and the request as metadata.

    batches: the run_ids of each batch to train; runs: all planned runs, finished or not; how: execution settings.
    """
    batch_of = {run_id: n for n, batch in enumerate(batches) for run_id in batch}
    overrides = request.get("overrides", [])
    asked = {
        "command": str(request.get("command", "")),
        "overrides": shlex.join(str(o) for o in overrides) if isinstance(overrides, list) else str(overrides),
        "python": platform.python_version(), "normstudy": version("normstudy"), "torch": version("torch"), **how,
    }  # fmt: skip
    table = pa.table({
        "run_id": pa.array(list(runs), pa.string()),
        "batch": pa.array([batch_of.get(i) for i in runs], pa.int32()),
        "n_steps": pa.array([config.schedule.n_steps for config in runs.values()], pa.int32()),
    })  # fmt: skip
    stamp = tables.now().strftime("%Y%m%dT%H%M%S.%f")
    (study_dir / "sweeps").mkdir(exist_ok=True)
    files.place(study_dir, f"sweeps/{stamp}.parquet", parquet.bytes_of(table.replace_schema_metadata(asked)))


def git_commit() -> str | None:
    """Return the package's git commit, with -dirty if a package file has changed; None outside of a git checkout."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        try:
            out = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return out.stdout.strip() if out.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # git does not track the package, although its folder may lie in another project's checkout
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", str(package)) else commit
