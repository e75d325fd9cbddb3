"""Weights & Biases: a folder of offline runs for `wandb sync`, one a run, made by the wandb library. Nothing is sent.

A run's id and name are its run_id, its project is the study. Config: the asked columns but data_path, which names a
place on this machine. History: the scalars of scalars.py. Summary: how the run ended. Its tag is its status, and a run
that failed is marked as such. The `_timestamp` of a step is no measurement, see Run.time.

wandb runs in a process of its own (wandb_child.py), without the WANDB_ variables, settings files and caches of the
user: there is no login, and what they say, such as WANDB_MODE=online, does not reach it. Of the machine a run's file
names the operating system and kind of CPU, the versions of Python and wandb, and when it was exported.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

from normstudy import config as cfg
from normstudy.config import ConfigError
from normstudy.exports.scalars import Run, runs_of
from normstudy.exports.source import Source

if getattr(find_spec("wandb"), "origin", None) is None:  # importing it takes a second; a folder ./wandb has no origin
    raise ImportError("No module named 'wandb'")

CHILD = Path(__file__).with_name("wandb_child.py")
SUMMARY = ("status", "final_val_loss", "final_train_loss", "nonfinite_step", "wall_time_s")
SECONDS_TO_END = 30.0  # for a process that has nothing left to do


class Message(NamedTuple):
    """What the process is sent of a run: plain values, so that it needs no module of normstudy."""

    run_id: str
    project: str
    tag: str
    exit_code: int
    config: dict[str, object]
    summary: dict[str, object]
    history: list[tuple[int, dict[str, float]]]  # (step, name -> number)


def write(source: Source, target: Path, scratch: Path) -> None:
    """Make the folder of offline runs. Raises ConfigError where wandb fails, OSError for a full disk."""
    target.mkdir()
    with _child(target, scratch) as stdin:
        for run in runs_of(source, "wandb"):
            stdin.write(json.dumps(message_of(run)).encode() + b"\n")
        stdin.write(b"null\n")


def message_of(run: Run) -> Message:
    """What is told of a run."""
    status = str(run.row["status"])
    return Message(
        run_id=run.run_id,
        project=str(run.row["study"]),
        tag=status,
        exit_code=int(status == "failed"),
        config={name: run.row[name] for name in cfg.asked_types() if name != "data_path"},
        summary={name: run.row[name] for name in SUMMARY if run.row[name] is not None},
        history=[(step, {**scalars, "_timestamp": run.time(step)}) for step, scalars in run.steps.items()],
    )


@contextlib.contextmanager
def _child(target: Path, scratch: Path) -> Iterator[IO[bytes]]:
    """The input of the process that makes the runs; raises what went wrong there."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # A session of its own, so that Ctrl-C comes here, and this process ends that one. -P: no import from this folder.
    process = subprocess.Popen(
        [sys.executable, "-P", str(CHILD), str(target.absolute())], env=env, cwd=scratch, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and told why
            yield process.stdin
            process.stdin.flush()
        told = process.stdout.read().decode(errors="replace").strip()
        code = process.wait()
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
    if code or told:
        number, _, text = told.partition(" ")
        if number.isdecimal() and int(number):
            raise OSError(int(number), os.strerror(int(number)))
        raise ConfigError(f"wandb cannot make the runs: {text or f'it ended with code {code}'}")


def opens(out: Path) -> str:
    """The command that sends them."""
    return f"wandb sync {shlex.quote(str(out / 'wandb'))}/offline-run-*"
