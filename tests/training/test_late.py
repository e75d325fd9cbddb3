"""The evaluation at two thirds of a run, on which outcomes rest: it is there whatever eval.every is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import REQUEST, after, assert_same_tables, never, task_of, tiny

from normstudy.analysis.outcomes import outcomes
from normstudy.config import RunConfig
from normstudy.data import texts
from normstudy.study import tables
from normstudy.sweep import execute, planning
from normstudy.training import batch
from normstudy.workers import checkpoint, worker

N_STEPS, LATE = 14, 9
EVERY = [1, 2, 3, 4, 9, 100]


def configs(root: Path, every: int) -> list[RunConfig]:
    """Three runs, the last of which diverges."""
    made = [tiny(root, n_steps=N_STEPS, seed=s, optimizer="sgd", peak_lr=1e9 if s == 2 else 0.1) for s in range(3)]
    return [dataclasses.replace(c, eval=dataclasses.replace(c.eval, every=every)) for c in made]


def trained(every: int, sync_every: int | None = None) -> tuple[list[bytes], list[float]]:
    """All that does not depend on eval.every, and the validation losses at LATE."""
    asked = configs(Path(), every)
    told, late = [], []
    for event in batch.train_batch(asked, texts.load(asked[0].data), sync_every=sync_every):
        if isinstance(event, batch.Record):
            told.append(event.train_loss.tobytes() + event.update_norm.tobytes())
            assert (event.val_loss is not None) == (event.step % every == 0 or event.step == LATE)
            if event.step == LATE and event.val_loss is not None:
                late += event.val_loss.tolist()
        elif isinstance(event, batch.End):
            told.append(repr(event).encode())
    return told, late


def test_every_eval_every_gives_the_same_numbers() -> None:
    first = trained(1)
    assert len(first[1]) == 2
    assert [trained(every) for every in EVERY[1:]] == [first] * len(EVERY[1:])
    assert trained(4, sync_every=50) == first  # the steps that a GPU takes without a look end there too


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("every", [5, 3])
def test_a_run_goes_on_when_an_evaluation_is_not_finite(
    value: float, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But its training losses are. In the tables it is infinite, because NaN would read as null."""
    evaluate, calls, n_calls = batch.evaluate, 0, 5 if every == 5 else 6

    def broken(*arguments: Any) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        nonlocal calls
        calls += 1
        losses = evaluate(*arguments)
        return losses if calls in (1, n_calls) else np.full_like(losses, value)  # at 0 and at the end

    monkeypatch.setattr(batch, "evaluate", broken)
    list(worker.train_halving(task_of(configs(tmp_path, every)[:2]), never))
    assert calls == n_calls
    runs, steps = (tables.read(tmp_path / "tiny", table) for table in ("runs", "steps"))
    assert runs["nonfinite_step"].isna().all()
    assert np.isinf(runs["late_val_loss"] if every == 5 else steps.loc[steps["step"] == LATE, "val_loss"]).all()
    assert set(outcomes(runs, steps)) == {"unfinished"}


encode = checkpoint.encode


def encoded_without_it(one: checkpoint.Checkpoint, stamp: dict[str, str]) -> bytes:
    return encode(dataclasses.replace(one, late_val_loss=None), stamp)


def test_a_checkpoint_without_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an older version, at a later step: the run starts again rather than have no outcome."""
    for name in ("whole", "older"):
        asked = configs(tmp_path / name, 5)
        if name == "older":
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint, "encode", encoded_without_it)
                list(worker.train_halving(task_of(asked), after(LATE + 2)))
            (message,) = (m for m in worker.train_halving(task_of(asked), never) if m.notes)
            assert (
                f"older version lacks the validation loss of step {LATE}; the run starts again from step 0"
                in message.notes[0]
            )
        execute.execute(planning.plan(asked), REQUEST)
    assert_same_tables(tmp_path / "whole" / "tiny", tmp_path / "older" / "tiny")


@pytest.mark.parametrize("stop", [LATE - 1, LATE, LATE + 1, LATE + 3])
def test_it_survives_a_stop(stop: int, tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        asked = configs(tmp_path / name, 5)
        if name == "stopped":
            list(worker.train_halving(task_of(asked), after(stop)))
        execute.execute(planning.plan(asked), REQUEST)
    whole, stopped = (tmp_path / name / "tiny" for name in ("whole", "stopped"))
    assert_same_tables(whole, stopped)
    assert tables.read(whole, "runs")["late_val_loss"].notna().tolist() == [True, True, False]
