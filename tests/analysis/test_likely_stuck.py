"""Which running runs look stuck, from hand-made gradients; tests/upkeep/test_status.py reads them by `status`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from normstudy.analysis.likely_stuck import LikelyStuck, rule
from normstudy.study import parquet, schema

RUN = "x-0123456789"
SMALL = rule().threshold / 2


def put(study: Path, steps: Iterable[int], *norms: float | None) -> None:
    """Write the window of steps with the gradient norm of each layer's `mlp_out`."""
    rows = [
        {"run_id": RUN, "step": step, "layer": layer, "module": "mlp_out", "grad_norm": norm}
        for step in steps
        for layer, norm in enumerate(norms)
    ]
    (study / "tables/modules").mkdir(parents=True, exist_ok=True)
    data = parquet.encode("modules", pa.Table.from_pylist(rows, schema.SCHEMAS["modules"]))
    (study / "tables/modules" / schema.window_name(RUN, 0)).write_bytes(data)


def watched(n_steps: int) -> list[tuple[object, ...]]:
    return [(RUN, "running", n_steps, 2, 10, 1, None, schema.WATCH, math.nan)]


def test_a_watched_run_is_judged_when_its_step_is_on_disk(tmp_path: Path) -> None:
    """Its file is replaced by longer ones, unlike that of a run that normstudy trains."""
    looker = LikelyStuck(tmp_path)
    put(tmp_path, range(rule().step - 9), SMALL, 1.0)
    assert looker.count(watched(rule().step - 9)) == 0
    put(tmp_path, range(rule().step + 1), SMALL, 1.0)
    assert looker.count(watched(rule().step + 1)) == 1


@pytest.mark.parametrize(("norms", "n"), [((SMALL, 1.0), 1), ((None, 1.0), 0), ((1.0, None), 0), ((None, None), 0)])
def test_a_frozen_layer_looks_like_nothing(norms: tuple[float | None, ...], n: int, tmp_path: Path) -> None:
    put(tmp_path, range(rule().step + 1), *norms)
    assert LikelyStuck(tmp_path).count(watched(rule().step + 1)) == n
