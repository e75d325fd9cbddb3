"""Each sentence of the README's section about failures has tests that hold it; one without a test fails here."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from studies import after, assert_same_tables, never, task_of, tiny

from normstudy.config import ExecutionConfig, RunConfig
from normstudy.data.texts import Text
from normstudy.study import checkpoints, tables
from normstudy.training import batch
from normstudy.training.step import Inputs, Measured, Runs, step_
from normstudy.workers import recording, worker
from normstudy.workers.task import Task

HERE = Path(__file__).parent
SECTION = re.compile(r"^## When things go wrong\n(.*?)^## ", re.S | re.M)

# Sentence -> the tests that hold it.
HELD_BY = {
    "A sweep that is killed at any instant goes on with the same words and ends in the same bits.": (
        "faults/test_kill_points.py::test_a_kill_at_any_point_costs_nothing",
        "faults/test_random_kills.py::test_twenty_kills_change_no_bit",
        "faults/test_signals.py::test_a_killed_parent_leaves_no_orphan_and_the_same_words_go_on",
    ),
    "No finished run is lost; what was trained since the last checkpoint, by default a minute, is trained again.": (
        "faults/test_random_kills.py::test_twenty_kills_change_no_bit",
        "test_checkpoint.py::test_checkpoints_are_written_by_time",
        "test_when_things_go_wrong.py::test_by_default_a_checkpoint_is_written_each_minute",
        "test_when_things_go_wrong.py::test_what_was_trained_since_the_last_checkpoint_is_trained_again",
    ),
    "Checkpoints are written on a CPU only: on a GPU an unfinished run starts again.": (
        "test_when_things_go_wrong.py::test_on_a_gpu_an_unfinished_run_starts_again",
    ),
    "Ctrl-C, SIGTERM and a closed terminal finish the step, save every run and say how to go on.": (
        "faults/test_signals.py::test_once_saves_every_run_and_says_how_to_go_on",
    ),
    "A second Ctrl-C ends it at once.": ("faults/test_signals.py::test_twice_ends_at_once_and_leaves_nobody",),
    "A worker that is killed, by the out-of-memory killer too, fails no run: another one takes its batch, as two "
    "batches where it had no checkpoint yet.": (
        "test_failures.py::test_a_run_whose_process_always_dies_is_failed_after_its_tries",
        "faults/test_random_kills.py::test_twenty_kills_change_no_bit",
    ),
    "A run that crashes is `failed`, its traceback lies in `state/logs`, and it stops no other.": (
        "test_failures.py::test_an_error_in_one_run_stops_no_other",
    ),
    "The next call tries it again, three times in all; with `--no-retry-failed` it does not.": (
        "test_failures.py::test_a_run_is_tried_so_often_and_then_left",
        "test_hydra.py::test_flags_say_whether_failed_runs_are_tried_again",
    ),
    "A full, read-only or limited disk stops the sweep with one line and exit code 2.": (
        "faults/test_storage.py::test_a_full_disk_stops_the_sweep_and_room_lets_it_go_on",
        "faults/test_storage.py::test_a_disk_that_becomes_read_only",
        "faults/test_storage.py::test_a_limit_on_the_size_of_files",
    ),
    "With room the same command goes on.": (
        "faults/test_storage.py::test_a_full_disk_stops_the_sweep_and_room_lets_it_go_on",
    ),
    "A damaged checkpoint, or one of another torch, CPU or BLAS, is set aside with a line, and its run starts from "
    "zero.": (
        "test_checkpoint.py::test_a_damaged_checkpoint_is_set_aside_with_a_line",
        "test_checkpoint.py::test_a_checkpoint_from_elsewhere_is_not_gone_on_from",
    ),
    "A damaged table is one line too, from whatever reads it, and `normstudy check` says what mends it.": (
        "test_damage.py::test_every_reader_names_the_file_and_what_to_do",
        "check/test_check_files.py::test_a_damaged_file_is_told_and_mended_by_what_is_said",
    ),
    "A second sweep on a study is told who holds it; a holder that died holds nothing.": (
        "test_sweep.py::test_the_second_sweep_on_a_study_is_told_who_holds_it",
        "test_lock.py::test_a_dead_holder_frees_it_at_once",
    ),
    "Readers see whole files only, at any time; a table never loses a row.": (
        "test_sweep.py::test_readers_agree",  # while it is trained
        "faults/test_random_kills.py::test_twenty_kills_change_no_bit",
    ),
    "A Slurm job at its time limit, one that makes room for another, or whose node goes down, waits and goes on.": (
        "slurm/test_slurm.py::test_a_job_goes_on_after_its_time_limit",
        "slurm/test_slurm.py::test_a_preempted_job_saves_its_runs_and_goes_on",
        "slurm/test_slurm.py::test_the_runs_of_a_node_that_goes_down_go_on_elsewhere",
    ),
    "Of one that is killed the others finish, and the same command trains the rest.": (
        "slurm/test_slurm.py::test_a_killed_job_takes_its_runs_only_and_the_same_command_goes_on",
    ),
}


def lines() -> list[str]:
    """The section's lines, each on one line of text."""
    section = SECTION.search((HERE.parent / "README.md").read_text())
    assert section is not None
    assert section[1].strip().startswith("- ")  # nothing but a list
    return [" ".join(line.split()) for line in re.split(r"^- ", section[1], flags=re.M)[1:]]


def test_each_sentence_has_its_tests() -> None:
    sentences = [sentence for line in lines() for sentence in re.split(r"(?<=\.) (?=[A-Z])", line)]
    assert sentences == list(HELD_BY)


def test_they_are_ten_lines() -> None:
    assert len(lines()) == 10
    assert max(map(len, lines())) < 240


@functools.cache
def functions(file: str) -> set[str]:
    """The names of a test file's functions."""
    return {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_those_tests_are_there() -> None:
    named = [test.split("::") for tests in HELD_BY.values() for test in tests]
    assert [name for file, name in named if name not in functions(file)] == []


# ---- what no other test holds -------------------------------------------------------------------------


def test_by_default_a_checkpoint_is_written_each_minute() -> None:
    assert ExecutionConfig().checkpoint_seconds == Task.checkpoint_seconds == 60.0


def test_what_was_trained_since_the_last_checkpoint_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint at step 4, seven steps, a kill: step 4 is the next one again, and no bit differs."""
    list(worker.train_halving(task_of([tiny(tmp_path / "whole")]), never))
    config = tiny(tmp_path / "killed")
    list(worker.train_halving(task_of([config]), after(4)))
    going_on = worker.train_halving(task_of([config]), never)
    with monkeypatch.context() as patch:
        patch.setattr("normstudy.training.step.step_", dies_after(7))
        with pytest.raises(Killed):
            list(going_on)
    messages = list(worker.train_halving(task_of([config]), never))
    assert sum(message.resumed for message in messages) == 4
    assert_same_tables(tmp_path / "whole" / "tiny", tmp_path / "killed" / "tiny")


class Killed(BaseException):
    """Ends everything, as a signal would: nothing is saved or told."""


def dies_after(n: int):  # type: ignore[no-untyped-def]
    steps = iter(range(n))

    def step(runs: Runs, inputs: Inputs, **how: bool) -> Measured:
        if next(steps, None) is None:
            raise Killed
        return step_(runs, inputs, **how)

    return step


def test_on_a_gpu_an_unfinished_run_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is said to be one, and the training is this machine's: what is tested is what is saved of it."""
    train_batch, machine = batch.train_batch, recording.machine

    def on_the_cpu(configs: list[RunConfig], text: Text, device: str, **how: object) -> Iterator[object]:
        assert device == "cuda"
        return train_batch(configs, text, "cpu", **how)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "train_batch", on_the_cpu)
    monkeypatch.setattr(recording, "machine", lambda device: machine("cpu") | {"device": "a GPU"})
    task = replace(task_of([tiny(tmp_path)], seconds=0.0), device="cuda")
    study = tmp_path / "tiny"
    list(worker.train_halving(task, after(6)))
    assert set(tables.finished_ids(study).values()) == {"running"}
    assert not (study / checkpoints.FOLDER).exists()
    messages = list(worker.train_halving(task, never))
    assert sum(message.resumed for message in messages) == 0
    assert set(tables.finished_ids(study).values()) == {"done"}
    assert len(tables.read(study, "steps")) == 12
