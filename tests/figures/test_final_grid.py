"""The final grid of every committed study: each marker is at its run's value, and the lines are on the ticks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import drawn, having, points
from handmade import STUDY, handmade_config, write_handmade_run
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normstudy.analysis.grid import phrase
from normstudy.figures import look as looks
from normstudy.figures import style
from normstudy.figures.final_grid import final_grid, grid_table, x_axis
from normstudy.figures.study import Study, load

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = {"warmup": "peak_lr", "depth": "n_layers", "peak_lr": "peak_lr", "rmsnorm": "norm", "placements": "n_layers"}
NEAR = 0.04  # of the gap to the next tick


def ticks(fig: Figure) -> dict[str, float]:
    """The text of each tick of the x axis -> its position."""
    axis = fig.axes[-1].xaxis
    return {t.get_text(): float(x) for t, x in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)}


def markers(fig: Figure) -> dict[str, Line2D]:
    """Run id -> its marker."""
    return {run: mark for ax in fig.axes for o in style.OUTCOME_MARKERS for run, mark in drawn(ax, f"{o}:").items()}


def assert_at_values(study: Study, fig: Figure, column: str) -> None:
    at, marks = ticks(fig), markers(fig)
    assert set(marks) == set(study.finished["run_id"])
    places = np.array(list(at.values()))
    for row in study.finished.to_dict("records"):
        ((x, _),) = points(marks[row["run_id"]])
        tick = at[looks.label(row[column], {})]
        gaps = np.abs(places - tick)
        assert abs(x - tick) <= NEAR * gaps[gaps > 0].min()
    for ax in fig.axes:
        lines = [line for line in ax.get_lines() if str(line.get_gid()).startswith("mean:")]
        assert lines
        assert {x for line in lines for x, _ in points(line)} == set(places)
        xs = [points(line)[0][0] for o in style.OUTCOME_MARKERS for line in drawn(ax, f"{o}:").values()]
        assert len(set(xs)) == len(xs)  # runs of one loss are seen as several


@pytest.mark.parametrize(("name", "column"), STUDIES.items())
def test_every_marker_is_at_its_value_and_every_line_on_the_ticks(name: str, column: str) -> None:
    study = load(RESULTS / name)
    fig = final_grid(study)
    assert_at_values(study, fig, column)
    assert fig.axes[-1].get_xlabel().removesuffix(" (log axis)") == column


def test_seeds_of_one_loss_are_several_markers_in_any_order_of_the_rows(tmp_path: Path) -> None:
    for placement in ("pre", "post"):
        for warmup in (0, 20):
            for seed in range(3):
                config = handmade_config(tmp_path, placement=placement, warmup_steps=warmup, seed=seed, n_layers=2)
                write_handmade_run(tmp_path / STUDY, config, final_val_loss=2.5)
    study = load(tmp_path / STUDY)
    assert_at_values(study, final_grid(study), "warmup_steps")
    x = x_axis(study.runs, ())
    table, other = grid_table(study.runs, x), grid_table(study.runs.sample(frac=1, random_state=1), x)
    pd.testing.assert_series_equal(table.set_index("run_id")["at"], other.set_index("run_id")["at"])


def test_a_run_alone_is_exactly_at_its_value(tmp_path: Path) -> None:
    for rate in (1e-3, 3e-3):
        write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path, peak_lr=rate))
    fig = final_grid(load(tmp_path / STUDY))
    assert sorted(points(mark)[0][0] for mark in markers(fig).values()) == list(ticks(fig).values())


def test_the_filling_of_a_marker_tells_its_line_style() -> None:
    study = load(RESULTS / "warmup")
    fig = final_grid(study)
    marks, runs = markers(fig), {warmup: having(study.runs, warmup_steps=warmup)["run_id"] for warmup in (0, 100)}
    opacity = {w: {to_rgba(marks[run].get_markerfacecolor())[3] for run in ids} for w, ids in runs.items()}
    assert opacity[100] == {0}
    assert min(opacity[0]) > 0.5
    legend = fig.legends[0]
    shown = {t.get_text(): h for t, h in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    for warmup, found in opacity.items():
        assert {to_rgba(shown[phrase("warmup_steps", str(warmup))].get_markerfacecolor())[3]} == found
