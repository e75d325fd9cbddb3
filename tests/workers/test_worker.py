"""The worker around the training: it writes runs that end at one step together, splits a batch that is too large for
the memory, and ends when its GPU is lost."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import REQUEST, assert_same_tables, never, task_of, tiny

from normstudy.config import RunConfig
from normstudy.study import records
from normstudy.sweep import execute, planning
from normstudy.training.batch import End, Record
from normstudy.workers import pool, recording
from normstudy.workers.recording import grouped
from normstudy.workers.task import Message, Task
from normstudy.workers.worker import DeviceLost, is_out_of_memory, loses_device, train_halving


def record(step: int) -> Record:
    one = np.ones(1)
    return Record(step, [0], one, None, [1e-3], one, one, one, None)


def test_ends_of_one_step_come_together_and_nothing_changes_its_place() -> None:
    a, b, c = record(0), record(1), record(2)
    ends = [End(run, 1.0, None) for run in range(4)]
    assert list(grouped(iter([a, ends[0], b, c, *ends[1:]]))) == [a, [ends[0]], b, c, ends[1:]]
    assert list(grouped(iter([a, *ends[:2], b]))) == [a, ends[:2], b]
    assert list(grouped(iter([]))) == []


def test_a_crash_takes_nothing_from_the_runs_that_ended_before() -> None:
    a, end = record(0), End(0, None, 0)

    def crashes() -> Iterator[Record | End]:
        yield a
        yield end
        raise ValueError("out of memory")

    seen: list[object] = []
    with pytest.raises(ValueError, match="out of memory"):
        seen.extend(grouped(crashes()))
    events = grouped(crashes())
    assert [next(events), next(events)] == [a, [end]]
    with pytest.raises(ValueError, match="out of memory"):
        next(events)


CHILD = """
import resource, sys
from pathlib import Path
import torch
sys.path[:0] = ["tests", "tests/workers"]
from test_worker import wide
from normstudy.data import texts
from normstudy.study import tables
from normstudy.sweep import planning
from normstudy.training import batch
from normstudy.workers import task, worker
torch.set_num_threads(1)
configs = [wide(Path(sys.argv[1]), seed) for seed in range(16)]
planned = planning.plan(configs)
tables.prepare(planned.study_dir)
ids = planned.missing
one = task.Task(0, planned.study_dir, ids, [planned.runs[i] for i in ids], planned.texts[ids[0]], "cpu", None)
for _ in batch.train_batch(configs[:2], texts.load(configs[0].data)):
    pass  # all libraries are loaded before the memory is limited
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]) * 2**20,) * 2)
messages = list(worker.train_halving(one, lambda: False))
print([m.smaller for m in messages if m.smaller], sum(m.run_steps for m in messages))
"""


def wide(root: Path, seed: int) -> RunConfig:
    """A run of some 20 MB, of two steps."""
    return tiny(root, seed=seed, d_model=64, n_layers=2, batch_size=16, seq_len=64, n_steps=2, workers=1)


def child(root: Path, megabytes: int) -> subprocess.CompletedProcess[str]:
    """Run CHILD with a limit on the memory it adds. Thread stacks count, so they are made small."""
    words = ["bash", "-c", 'ulimit -s 512; exec "$@"', "bash", sys.executable, "-c", CHILD, str(root), str(megabytes)]
    # Without the workers' allocator settings, which reserve memory in large pieces, and without a heap for each thread.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {"MALLOC_ARENA_MAX": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=variables)


@pytest.mark.processes
def test_a_batch_too_large_for_the_memory_is_trained_in_halves(tmp_path: Path) -> None:
    """With 180 MB for 16 runs, which need over 240, the tables are the same as without a limit."""
    plenty, little = tmp_path / "plenty", tmp_path / "little"
    messages = list(train_halving(task_of([wide(plenty, seed) for seed in range(16)]), never))
    assert not any(message.smaller for message in messages)
    assert sum(message.run_steps for message in messages) == 32
    done = child(little, 180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[8")
    assert done.stdout.endswith("] 32\n")
    assert_same_tables(plenty / "tiny", little / "tiny")


def test_errors_after_which_a_process_has_no_gpu() -> None:
    """In the words of torch, also as the cause of another error; but no other error of a GPU."""
    told = "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
    lost = RuntimeError(f"CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in the docs. {told}")
    assert loses_device(lost)
    assert loses_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
    later = ValueError("while capturing")
    later.__context__ = lost
    assert loses_device(later)
    for text in (f"CUDA error: out of memory\n{told}", "CUDA error: invalid argument", "index 9 is out of bounds"):
        assert not loses_device(RuntimeError(text))


@pytest.mark.parametrize(("device", "runs"), [("cuda", 4), ("cuda", 1), ("cpu", 4)])
def test_a_process_without_its_gpu_leaves_the_halves_to_another(
    tmp_path: Path, device: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single run has failed and its error is recorded; on a CPU the same words have no effect."""

    def asserts(task: Task, stopping: object) -> Iterator[Message]:
        yield Message(task.number, 5)
        raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")

    monkeypatch.setattr(recording, "train_task", asserts)
    task = replace(task_of([tiny(tmp_path, seed=s) for s in range(runs)]), device=device)
    seen: list[Message] = []
    if device == "cpu":
        seen.extend(train_halving(task, never))
    else:
        with pytest.raises(DeviceLost, match=r": RuntimeError: CUDA error: device-side assert triggered$"):
            seen.extend(train_halving(task, never))
    failed = [run_id for message in seen for run_id in message.failed]
    assert sorted(failed) == (sorted(task.run_ids) if device == "cpu" or runs == 1 else [])
    assert sum(message.run_steps for message in seen) == len(failed) * 12
    assert sum(records.tries_of(task.study_dir).values()) == len(failed)


def test_errors_that_mean_too_little_memory() -> None:
    """torch's own error on a CPU, also as the cause of another error; but no other error."""
    with pytest.raises(RuntimeError) as plain:
        torch.empty(2**55)
    assert is_out_of_memory(plain.value)
    later = ValueError("while capturing")
    later.__cause__ = plain.value
    assert is_out_of_memory(later)
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)


def test_a_new_worker_that_died_before_it_read_its_batch_is_a_false_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending a batch larger than the pipe's buffer fails. It must not be tried for ever without reading signals."""
    made = itertools.count(1)

    class Dead(pool.Slot):
        def __init__(self, lock: int, *, forked: bool) -> None:
            super().__init__(lock, forked=forked)
            assert next(made) < 3, "one after the other is started"
            self.process.process.send_signal(signal.SIGKILL)
            self.process.wait()

    monkeypatch.setattr(pool, "Slot", Dead)
    task = task_of([tiny(tmp_path)])
    many = replace(task, run_ids=task.run_ids * 2000, configs=task.configs * 2000)
    with open(tmp_path / "lock", "w") as lock:
        one = pool._Pool([many], 1, lock.fileno(), 3)
        one.fill()
    assert [slot.task for slot in one.slots] == [many]
    assert not one.queue
    one.slots[0].process.close()


def test_a_forked_worker_gives_the_bits_of_this_process(tmp_path: Path) -> None:
    """Runs of two shapes, trained together by workers and one by one here."""
    for n, sizes in enumerate(({}, {"d_model": 32, "n_heads": 4, "seq_len": 31, "batch_size": 3})):
        forked, here = tmp_path / f"forked-{n}", tmp_path / f"here-{n}"
        execute.execute(planning.plan([tiny(forked, seed=s, **sizes) for s in range(3)]), REQUEST)
        for seed in range(3):
            list(train_halving(task_of([tiny(here, seed=seed, **sizes)]), never))
        assert_same_tables(forked / "tiny", here / "tiny")
