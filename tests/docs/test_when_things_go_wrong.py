"""Each sentence of docs/when_things_go_wrong.md has tests that hold it; one without a test fails here."""

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
from normstudy.training.step import Inputs, Measured, StackedRuns, step_
from normstudy.workers import recording, worker
from normstudy.workers.task import Task

TESTS = Path(__file__).parents[1]

# Sentence -> the tests that hold it.
HELD_BY = {
    "A sweep that is killed at any moment resumes when you give the same command again, "
    "and its results have the same bits.": (
        "test_kill_points.py::test_a_kill_costs_nothing_and_a_known_mistake_is_found",
        "test_random_kills.py::test_eight_kills_change_no_bit",
        "test_signals.py::test_a_killed_parent_leaves_no_orphan_and_no_failed_run",
    ),
    "No finished run is lost; an unfinished run repeats the steps since its last checkpoint, "
    "by default at most a minute.": (
        "test_random_kills.py::test_eight_kills_change_no_bit",
        "test_checkpoint.py::test_checkpoints_are_written_by_time",
        "test_when_things_go_wrong.py::test_by_default_a_checkpoint_is_written_each_minute",
        "test_when_things_go_wrong.py::test_what_was_trained_since_the_last_checkpoint_is_trained_again",
    ),
    "Checkpoints are written on a CPU only: on a GPU an unfinished run starts again.": (
        "test_when_things_go_wrong.py::test_on_a_gpu_an_unfinished_run_starts_again",
    ),
    "Ctrl-C, SIGTERM and a closed terminal finish the current step, save every run and print how to resume.": (
        "test_signals.py::test_once_saves_every_run_and_says_how_to_go_on",
    ),
    "A second Ctrl-C ends the sweep at once.": ("test_signals.py::test_twice_ends_at_once_and_leaves_nobody",),
    "When a worker is killed, for example by the out-of-memory killer, no run fails: another worker takes over its "
    "batch, and splits it in two if it has no checkpoint yet.": (
        "test_failures.py::test_a_run_whose_process_always_dies_is_failed_after_its_tries",
        "test_random_kills.py::test_eight_kills_change_no_bit",
    ),
    "A run that crashes is marked `failed`, its traceback is kept in `state/logs`, and the other runs continue.": (
        "test_failures.py::test_an_error_in_one_run_stops_no_other",
    ),
    "The next sweep tries it again, up to three times in all; with `--no-retry-failed` it does not.": (
        "test_failures.py::test_a_run_is_tried_so_often_and_then_left",
        "test_hydra.py::test_flags_say_whether_failed_runs_are_tried_again",
    ),
    "A full disk, a read-only disk, or a limit on the size of files stops the sweep with one line and exit code 2.": (
        "test_storage.py::test_a_full_and_a_read_only_disk_stop_the_sweep_and_room_lets_it_go_on",
        "test_storage.py::test_a_limit_on_the_size_of_files",
    ),
    "Once files can be written again, the same command resumes it.": (
        "test_storage.py::test_a_full_and_a_read_only_disk_stop_the_sweep_and_room_lets_it_go_on",
    ),
    "A checkpoint that is damaged, or that comes from another version of torch, CPU or BLAS, is set aside with one "
    "line, and its run starts from step 0.": (
        "test_checkpoint.py::test_a_damaged_checkpoint_is_set_aside_with_a_line",
        "test_checkpoint.py::test_a_checkpoint_from_elsewhere_is_refused",
    ),
    "A damaged table also gives one line in every command that reads it, "
    "and `normstudy check` says how to repair it.": (
        "test_damage.py::test_every_reader_names_the_file_and_what_to_do",
        "test_check_files.py::test_a_damaged_file_is_told_and_mended_by_what_is_said",
    ),
    "If rows of a run are missing, because a file was lost or damaged, each command that reads them says so in one "
    "line and leaves the run out.": (
        "test_whole.py::test_every_reader_equals_the_undamaged_result_or_says_what_is_missing",
        "test_whole.py::test_the_commands_say_it_in_one_line",
    ),
    "The same sweep trains the run again; `normstudy compact` refuses.": (
        "test_whole.py::test_the_same_sweep_trains_again_what_is_gone",
        "test_whole.py::test_a_compacted_study_gets_back_what_is_gone",
    ),
    "An unfinished run whose files are damaged starts again.": (
        "test_whole.py::test_damaged_files_of_unfinished_runs_are_replaced",
    ),
    "A sealed study whose files have changed is not sealed again.": (
        "test_whole.py::test_a_sealed_study_that_lacks_rows_is_neither_trained_nor_sealed_again",
    ),
    "A file in a table's folder with a name that normstudy does not write, such as a copy, is named in one line and "
    "never read.": ("test_whole.py::test_only_names_that_the_store_writes_are_read",),
    "A second sweep of a study that is in use is refused, and the message names the process that uses it; a process "
    "that has died blocks nothing.": (
        "test_sweep.py::test_the_second_sweep_on_a_study_is_told_who_holds_it",
        "test_lock.py::test_a_dead_holder_frees_it_at_once",
    ),
    "Readers see only whole files at any time; a table never loses a row.": (
        "test_sweep.py::test_readers_agree",  # while it is trained
        "test_random_kills.py::test_eight_kills_change_no_bit",
    ),
    "A Slurm job that reaches its time limit, is preempted, or loses its node goes back into the queue and resumes.": (
        "test_slurm.py::test_a_job_goes_on_after_its_time_limit",
        "test_slurm.py::test_a_preempted_job_saves_its_runs_and_goes_on",
        "test_slurm.py::test_the_runs_of_a_node_that_goes_down_go_on_elsewhere",
    ),
    "When one job is killed, the others finish, and the same command trains the rest.": (
        "test_slurm.py::test_a_killed_job_takes_its_runs_only_and_the_same_command_goes_on",
    ),
}


def lines() -> list[str]:
    """The items of the page's list, each on one line of text."""
    page = (TESTS.parent / "docs" / "when_things_go_wrong.md").read_text()
    return [" ".join(line.split()) for line in re.split(r"^- ", page, flags=re.M)[1:]]


def test_each_sentence_has_its_tests() -> None:
    sentences = [sentence for line in lines() for sentence in re.split(r"(?<=\.) (?=[A-Z])", line)]
    assert sentences == list(HELD_BY)


def test_they_are_short() -> None:
    assert len(lines()) == 13
    assert max(map(len, lines())) < 300


@functools.cache
def functions(file: str) -> set[str]:
    """The names of a test file's functions; no two test files have the same name."""
    (path,) = TESTS.rglob(file)
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


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

    def step(runs: StackedRuns, inputs: Inputs, **how: bool) -> Measured:
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
    assert set(tables.statuses(study).values()) == {"running"}
    assert not (study / checkpoints.FOLDER).exists()
    messages = list(worker.train_halving(task, never))
    assert sum(message.resumed for message in messages) == 0
    assert set(tables.statuses(study).values()) == {"done"}
    assert len(tables.read(study, "steps")) == 12
