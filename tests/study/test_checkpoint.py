"""Runs that are stopped and resumed get the same bits as without a stop, and use no checkpoint but their own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studies import after, assert_same_tables, never, task_of, tiny

from normstudy.config import RunConfig
from normstudy.study import checkpoints, schema, tables
from normstudy.training import batch, step
from normstudy.training.probes import layout_of
from normstudy.workers import checkpoint, recording, worker
from normstudy.workers.checkpoint import Checkpoint, Refused
from normstudy.workers.task import Message

COMPUTED_BY = {"torch": "2", "cpu_capability": "AVX2", "blas": "openblas", "device": "cpu"}


def train_on(configs: Sequence[RunConfig], stopping: Callable[[], bool] = never) -> list[Message]:
    return list(worker.train_halving(task_of(configs), stopping))


def notes(messages: Sequence[Message]) -> list[str]:
    return [note for message in messages for note in message.notes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of a run that was never stopped."""
    root = tmp_path_factory.mktemp("whole")
    train_on([tiny(root)])
    return root / "tiny"


# ---- the same bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "optimizer", "n_layers", "stops"),
    [
        ("pre", "sgd", 1, (1, 6)), ("post", "adam", 2, range(1, 8)), ("mix", "adamw", 4, (1, 4)),
        ("admin", "adam", 2, (1, 2, 7)),
    ],
)  # fmt: skip
def test_a_stop_at_any_step_changes_no_bit(
    tmp_path: Path, placement: str, optimizer: str, n_layers: int, stops: Sequence[int]
) -> None:
    """admin's omegas are measured before the first step; a resumed run must not measure them again.

    One kind stops at every step. What is measured at a step is the same for all kinds, so the others stop at a few.
    """

    def configs(root: Path) -> list[RunConfig]:
        return [
            tiny(root, placement=placement, optimizer=optimizer, n_layers=n_layers, seed=s, n_steps=8) for s in range(2)
        ]

    train_on(configs(tmp_path / "whole"))
    for stop in stops:
        train_on(configs(tmp_path / str(stop)), after(stop))
        study = tmp_path / str(stop) / "tiny"
        assert set(tables.statuses(study).values()) == {"running"}
        assert len(tables.read(study, "steps")) == 0  # the rows are in the checkpoint until their window is full
        assert notes(train_on(configs(tmp_path / str(stop)))) == []
        assert_same_tables(tmp_path / "whole" / "tiny", study)
        assert list((study / checkpoints.FOLDER).iterdir()) == []


def test_a_stop_beyond_a_window_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "window_size", lambda n_steps, source=None: 3)
    train_on([tiny(tmp_path / "whole", n_steps=8)])
    for stop in (2, 3, 4, 7):
        config = tiny(tmp_path / str(stop), n_steps=8)
        train_on([config], after(stop))
        study = tmp_path / str(stop) / "tiny"
        assert len(tables.read(study, "steps")) == stop // 3 * 3
        before = {p: p.stat().st_ino for p in (study / "tables" / "steps").glob("*-*.parquet")}
        train_on([config])
        assert {p: p.stat().st_ino for p in before} == before  # written once
        assert_same_tables(tmp_path / "whole" / "tiny", study)


def test_runs_of_one_batch_resume_from_different_steps(tmp_path: Path) -> None:
    """The least advanced train first. One run diverges, one has not begun, one is at the last step."""
    stops = [3, 7, None, 3, 12, 1]

    def configs(root: Path) -> list[RunConfig]:
        rates = {3: 1e9}
        return [tiny(root, seed=s, optimizer="sgd", peak_lr=rates.get(s, 0.1)) for s in range(len(stops))]

    train_on(configs(tmp_path / "whole"))
    apart = configs(tmp_path / "apart")
    for config, stop in zip(apart, stops, strict=True):
        if stop is not None:
            train_on([config], after(stop))
    messages = train_on(apart)
    assert_same_tables(tmp_path / "whole" / "tiny", tmp_path / "apart" / "tiny")
    assert sum(m.run_steps for m in messages) == 12 * len(stops)
    assert sum(m.resumed for m in messages) == sum(
        m.run_steps for m in messages if m.resumed
    )  # resumed steps are counted apart, or the estimated time would be too short


def test_steps_are_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the run behind catches up, the run ahead takes no step."""
    ahead, behind = tiny(tmp_path, seed=0), tiny(tmp_path, seed=1)
    train_on([ahead], after(9))
    train_on([behind], after(4))
    taken: list[int] = []
    step_ = step.step_

    def counted(runs: step.StackedRuns, *args: object, **kwargs: object) -> step.Measured:
        taken.append(len(runs.params))
        return step_(runs, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("normstudy.training.step.step_", counted)
    train_on([ahead, behind])
    assert taken == [1] * 5 + [2] * 3


def test_the_parameters_of_a_checkpoint_are_let_go(tmp_path: Path) -> None:
    """They are as large as the batch, which holds a copy."""
    configs = [tiny(tmp_path, seed=s, n_steps=5) for s in range(2)]
    for config, steps in zip(configs, (2, 3), strict=True):
        train_on([config], after(steps))
    held: list[int] = []

    def look() -> bool:
        held.append(sum(type(o) is batch.ResumePoint for o in gc.get_objects()))
        return False

    assert sum(m.resumed for m in train_on(configs, look)) == 2 + 3
    assert held == [0] * 3


def test_checkpoints_are_written_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(recording, "save", lambda study_dir, snapshot, *_: written.append(snapshot.step))
    list(worker.train_halving(task_of([tiny(tmp_path)], 0.0), never))
    assert written == list(range(1, 13))
    list(worker.train_halving(task_of([tiny(tmp_path, seed=1)], 60.0), never))
    assert len(written) == 12


def test_the_wall_time_of_a_run_is_that_of_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path)
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(recording.time, "monotonic", lambda: float(next(clock)))
    train_on([config], after(6))
    first = tables.read(tmp_path / "tiny", "runs")
    monkeypatch.undo()
    train_on([config])
    runs = tables.read(tmp_path / "tiny", "runs")
    assert runs["wall_time_s"][0] > 60
    assert runs["started_at"][0] == first["started_at"][0]


# ---- checkpoints that are not used ----------------------------------------------------------------------


def a_stopped_run(root: Path) -> tuple[RunConfig, Path]:
    """A run with a checkpoint at step 6, and the file of the checkpoint."""
    config = tiny(root)
    train_on([config], after(6))
    (path,) = (root / "tiny" / checkpoints.FOLDER).iterdir()
    return config, path


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "header", "of another run"])
def test_a_damaged_checkpoint_is_set_aside_with_a_line(tmp_path: Path, whole: Path, damage: str) -> None:
    config, path = a_stopped_run(tmp_path / "damaged")
    data = bytearray(path.read_bytes())
    if damage == "of another run":
        train_on([tiny(tmp_path / "another", seed=1)], after(3))
        (other,) = (tmp_path / "another" / "tiny" / checkpoints.FOLDER).iterdir()
        data = bytearray(other.read_bytes())
    data[len(data) // 2] ^= damage == "flipped"
    cut = {"truncated": len(data) - 100, "empty": 0}.get(damage, len(data))
    path.write_bytes(b"x" * (damage == "header") + data[:cut])
    messages = train_on([config])
    (line,) = notes(messages)
    expected = "run_id" if damage == "of another run" else "the checkpoint is damaged"
    assert line.startswith(f"{path.name}: ")
    assert expected in line
    assert line.endswith("; the run starts again from step 0")
    assert (tmp_path / "damaged" / "tiny" / checkpoints.SET_ASIDE / path.name).exists()
    assert_same_tables(whole, tmp_path / "damaged" / "tiny")
    assert sum(m.resumed for m in messages) == 0


@pytest.mark.parametrize("column", recording.COMPUTED_BY)
def test_a_checkpoint_from_elsewhere_is_refused(
    tmp_path: Path, whole: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another torch, CPU or BLAS, a line says so and the run starts again from step 0."""
    machine = recording.machine
    monkeypatch.setattr(recording, "machine", lambda device: machine(device) | {column: "another"})
    config, path = a_stopped_run(tmp_path / "here")
    monkeypatch.undo()
    (line,) = notes(train_on([config]))
    assert f"{column} another, but this process has {machine('cpu')[column]}" in line
    assert line.startswith(path.name)
    assert line.endswith("; the run starts again from step 0")
    assert_same_tables(whole, tmp_path / "here" / "tiny")


def test_a_checkpoint_without_its_windows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user removed a file of the tables, whose rows are nowhere else."""
    monkeypatch.setattr(schema, "window_size", lambda n_steps, source=None: 5)
    train_on([tiny(tmp_path / "whole")])
    config, _ = a_stopped_run(tmp_path / "here")
    (lost,) = (tmp_path / "here" / "tiny" / "tables" / "residual").glob("*-000.parquet")
    lost.unlink()
    (line,) = notes(train_on([config]))
    why = "tables/residual lacks 4 of 4 steps (the first is step 0); the run starts again from step 0"
    assert why in line
    assert_same_tables(tmp_path / "whole" / "tiny", tmp_path / "here" / "tiny")


def test_a_changed_config_is_a_new_run(tmp_path: Path) -> None:
    config, path = a_stopped_run(tmp_path)
    longer = replace(config, schedule=replace(config.schedule, n_steps=13))
    messages = train_on([longer])
    assert sum(m.resumed for m in messages) == 0
    assert path.exists()
    assert sorted(tables.statuses(tmp_path / "tiny").values()) == ["done", "running"]


# ---- the file -------------------------------------------------------------------------------------------


def a_checkpoint() -> tuple[Checkpoint, dict[str, str]]:
    layout = layout_of({"embed.weight": torch.zeros(4, 3), "unembed.weight": torch.zeros(4, 3)})
    start = batch.ResumePoint(7, torch.arange(float(layout.width)), {"m": torch.ones(layout.width) / 3})
    rows: dict[str, dict[str, list[object]]] = recording.no_rows()
    values: dict[str, list[object]] = {
        "step": [5, 6], "train_loss": [1.5, 0.1], "val_loss": [2.5, None], "lr": [1e-3, 1e-3],
        "grad_norm": [1.0, 2.0], "param_norm": [1.0, 2.0], "update_norm": [0.5, 0.25],
    }  # fmt: skip
    rows["steps"] = values
    return Checkpoint(start, rows, 0.1, 2.25, 12.5), checkpoint.stamp("run", layout, COMPUTED_BY)


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    one, stamp = a_checkpoint()
    read = checkpoint.decode(checkpoint.encode(one, stamp), stamp)
    assert (read.start.step, read.train_loss, read.late_val_loss, read.wall_time_s) == (7, 0.1, 2.25, 12.5)
    assert torch.equal(read.start.params, one.start.params)
    assert read.start.state.keys() == {"m"}
    assert torch.equal(read.start.state["m"], one.start.state["m"])
    assert read.rows["steps"]["val_loss"] == [2.5, None]
    assert read.rows["modules"]["layer"] == []


def test_every_flipped_bit_is_seen() -> None:
    """safetensors itself loads most damaged files without an error."""
    one, stamp = a_checkpoint()
    data = checkpoint.encode(one, stamp)
    for place in range(0, len(data), 37):
        flipped = bytearray(data)
        flipped[place] ^= 4
        with pytest.raises(Refused):
            checkpoint.decode(bytes(flipped), stamp)
    for length in range(0, len(data), 101):
        with pytest.raises(Refused):
            checkpoint.decode(data[:length], stamp)


def test_another_layout_is_refused() -> None:
    """A layout of the same size, with its tensors in another order."""
    one, stamp = a_checkpoint()
    data = checkpoint.encode(one, stamp)
    other = layout_of({"unembed.weight": torch.zeros(4, 3), "embed.weight": torch.zeros(4, 3)})
    with pytest.raises(Refused, match="layout"):
        checkpoint.decode(data, checkpoint.stamp("run", other, COMPUTED_BY))
