"""Disks that are full, read-only or limited: one line that says what to do, and what was finished is intact."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from processes import AT_ONCE, SWEEP, finish, start, wait_for
from studies import assert_same_tables, never, task_of, tiny

from normstudy.errors import StorageError
from normstudy.study import checkpoints, files, records, schema, tables
from normstudy.workers import worker

SEEDS = 6
WORDS = [
    *SWEEP, f"seed=range(0,{SEEDS})", "schedule.n_steps=220", "execution.workers=2", "execution.runs_per_batch=1",
    "execution.checkpoint_seconds=0.05",
]  # fmt: skip
LINE = "Everything written so far is intact; {} and rerun the same command"

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 380 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=380k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def check_intact(study: Path) -> int:
    """How many runs are finished; every file of the tables can be read."""
    for table in schema.TABLES:
        pd.read_parquet(study / "tables" / table)
    assert list((study / "state").glob("*.part")) == []
    return list(tables.statuses(study).values()).count("done")


def test_a_full_and_a_read_only_disk_stop_the_sweep_and_room_lets_it_go_on(undisturbed: Path, small_disk: Path) -> None:
    done = finish([*WORDS, "results_dir=results"], small_disk)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"error: results/long cannot be written: No space left on device. {LINE.format('free space on the disk')}"
    )
    assert "Traceback" not in done.stderr
    assert 0 < check_intact(small_disk / "results" / "long") < SEEDS
    subprocess.run(["mount", "-o", "remount,size=20m,ro", str(small_disk)], check=True)
    done = finish(WORDS, small_disk)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Read-only file system" in done.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    again = finish([*WORDS, *AT_ONCE], small_disk)
    assert again.returncode == 0, again.stderr
    assert_same_tables(undisturbed, small_disk / "results" / "long")


def test_a_limit_on_the_size_of_files(undisturbed: Path, tmp_path: Path) -> None:
    """As a quota is felt: small files can be written, a checkpoint cannot."""
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash"]
    done = finish(WORDS, tmp_path, limited)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"File too large. {LINE.format('raise ulimit -f')}")
    check_intact(tmp_path / "results" / "long")
    assert finish([*WORDS, *AT_ONCE], tmp_path).returncode == 0
    assert_same_tables(undisturbed, tmp_path / "results" / "long")


BLOCK = """
import ctypes, pathlib, sys, time

def block(x, attn, mlp, norm1, norm2):
    if sys.argv[0] == "-c":  # a worker, not the planner that tries it out
        while not pathlib.Path("now").exists():
            time.sleep(0.02)
        ctypes.string_at(0)
    x = x + attn(norm1(x))
    return x + mlp(norm2(x))
"""


def test_a_crash_that_cannot_be_written_down_stops_the_sweep_in_order(tmp_path: Path) -> None:
    """What the parent writes of a dead worker fails: the other one saves its run all the same."""
    (tmp_path / "deadly.py").write_text(BLOCK)
    study = tmp_path / "results" / "long"
    logs = study / records.LOGS
    logs.parent.mkdir(parents=True)
    logs.write_text("a file in the place of the folder")
    words = ["model.placement=pre,deadly:block", "schedule.n_steps=1000000", "execution.checkpoint_seconds=1000"]
    running = start([*SWEEP, *words, "execution.workers=2"], tmp_path)
    wait_for(lambda: len(list(study.glob("tables/runs/*-s0-*.parquet"))) == 2)
    (tmp_path / "now").touch()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2, err
    assert err.splitlines()[-1] == (
        f"error: results/long cannot be written: File exists. {LINE.format('remove the cause')}"
    )
    assert "Traceback" not in err
    (checkpoint,) = (study / checkpoints.FOLDER).iterdir()
    assert checkpoint.name.startswith("pre-")


@pytest.mark.parametrize("number", sorted(files.REMEDIES), ids=lambda number: errno.errorcode[number])
def test_whatever_the_disk_says_is_one_line(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a run's second window, by what a write, an fsync or a replace raises."""
    monkeypatch.setattr(schema, "window_size", lambda n_steps, source=None: 4)
    for name in ("write", "fsync", "replace"):
        root = tmp_path / name
        task = task_of([tiny(root), tiny(root, seed=1)])
        messages = worker.train_halving(task, never)
        original, calls = getattr(os, name), 0

        def fails(*args: object, original: object = original, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > 8:
                raise OSError(number, os.strerror(number))
            return original(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(os, name, fails)
        with pytest.raises(StorageError) as raised:
            list(messages)
        monkeypatch.setattr(os, name, original)
        assert str(raised.value) == (
            f"{root}/tiny cannot be written: {os.strerror(number)}. {LINE.format(files.REMEDIES[number])}"
        )
        assert check_intact(root / "tiny") == 0
        assert "failed" not in tables.statuses(root / "tiny").values()
        assert len(list(worker.train_halving(task_of([tiny(root), tiny(root, seed=1)]), never))) > 0
        assert check_intact(root / "tiny") == 2
