"""Export to Weights & Biases: a folder of offline runs for `wandb sync`, written by the wandb library. Nothing is sent.

wandb runs in a separate process (wandb_child.py), without the user's WANDB_ variables, settings files and caches. wandb
therefore does not log in, and ignores settings such as WANDB_MODE=online. A run's file tells only these facts about
this machine: the operating system, the kind of CPU, the versions of Python and wandb, and the time of the export.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from normstudy import config as cfg
from normstudy.errors import ConfigError
from normstudy.exports.source import DERIVED, ExportedRun, Source, runs_of

# Check for wandb without importing it. A folder that is named wandb but is not the package has no origin.
if getattr(find_spec("wandb"), "origin", None) is None:
    raise ImportError("No module named 'wandb'")

CHILD = Path(__file__).with_name("wandb_child.py")
SUMMARY = ("status", *DERIVED["runs"].names, "final_val_loss", "final_train_loss", "nonfinite_step", "wall_time_s")
SECONDS_TO_END = 30.0  # a process that runs this long after its input has ended is killed


def write(source: Source, target: Path, scratch: Path) -> None:
    """Write the folder of offline runs. Raises ConfigError if wandb fails, and OSError if the disk fails."""
    target.mkdir()
    with _child(target, scratch) as stdin:
        for run in runs_of(source, "wandb"):
            stdin.write(json.dumps(offline_run(run)).encode() + b"\n")
        stdin.write(b"null\n")


def offline_run(run: ExportedRun) -> dict[str, object]:
    """Convert a run to plain values for wandb_child.py, which does not import normstudy. Times are estimated."""
    config = {name: run.row[name] for name in cfg.asked_types() if name != "data_path"}  # a path on this machine
    name, study, status = (run.row[column] for column in ("run_id", "study", "status"))
    return {
        "init": {"id": name, "name": name, "project": study, "tags": [status], "config": config},
        "history": [(step, {**scalars, "_timestamp": run.time(step)}) for step, scalars in run.steps.items()],
        "summary": {name: run.row[name] for name in SUMMARY if run.row[name] is not None},
        "exit_code": int(status == "failed"),
    }


@contextlib.contextmanager
def _child(target: Path, scratch: Path) -> Iterator[IO[bytes]]:
    """Yield the stdin of the process that writes the runs. At the end, if the process failed, raise its error."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # The child has its own session, so Ctrl-C reaches only this process, which then ends the child. -P: import nothing
    # from the current folder.
    with subprocess.Popen(
        [sys.executable, "-P", str(CHILD), str(target.absolute())], env=env, cwd=scratch, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the process has ended early, and its output says why
                yield process.stdin
            output = process.communicate()[0].decode(errors="replace").strip()
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=SECONDS_TO_END)  # closes the input, at which the process ends
            process.kill()
            raise
    if process.returncode or output:
        number, _, text = output.partition(" ")
        if number.isdecimal() and int(number):
            raise OSError(int(number), os.strerror(int(number)))
        reason = text or f"the wandb process ended with code {process.returncode}"
        raise ConfigError(f"wandb cannot write the runs ({reason}): try again, or choose another format")
