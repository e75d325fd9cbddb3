"""The ranking: order of the rows, means and intervals, and a marker for every run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from drawing import drawn, panel, points, same, titles, words
from handmade import H1, H2, STUDY, handmade_config, write_handmade_run
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from normstudy.figures import style
from normstudy.figures.draw import FIGURES
from normstudy.figures.ranking import rank, ranked_field
from normstudy.figures.study import Lacks, Study, load

# Five losses 0.1 apart: standard deviation 0.1 sqrt(2.5), and the t quantile of 4 degrees is 2.7764451052.
HALF = 2.7764451052 * 0.1 * math.sqrt(2.5) / math.sqrt(5)


def write(root: Path, losses: Mapping[str, Sequence[float | None]], **settings: object) -> Path:
    """Write a run per placement and loss, with seeds 0, 1, 2, ...; None stands for a diverged run."""
    for placement, ends in losses.items():
        for seed, loss in enumerate(ends):
            config = handmade_config(root, placement=placement, seed=seed, n_steps=4, **settings)  # type: ignore[arg-type]
            write_handmade_run(root / STUDY, config, "diverged" if loss is None else "learned", final_val_loss=loss)
    return root / STUDY


def around(mean: float) -> list[float | None]:
    return [mean + 0.1 * i for i in (-2, -1, 0, 1, 2)]


def rows(ax: Axes) -> list[str]:
    return [t.get_text() for t in ax.get_yticklabels()]


def texts(ax: Axes, prefix: str) -> dict[str, str]:
    """Rest of the id -> text, for the texts beside a panel whose id begins with `prefix`."""
    return {str(t.get_gid())[len(prefix) :]: t.get_text() for t in ax.texts if str(t.get_gid()).startswith(prefix)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four placements at 2 and 4 layers, warmup 0 and 2; each depth and warmup ranks the placements differently."""
    root = tmp_path_factory.mktemp("ranking")
    deep = {"pre": around(2.3), "post": [3.2, None, 3.3, 2.4, None], "peri": around(2.2), "sub": [2.0, 2.1]}
    write(root, deep, n_layers=4, warmup_steps=0)
    write(root, {"pre": around(2.2), "post": [2.3] * 5, "peri": around(2.4)}, n_layers=4, warmup_steps=2)
    for warmup in (0, 2):
        write(root, {p: [2.5, 2.7] for p in deep}, n_layers=2, warmup_steps=warmup)
    return root / STUDY


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return load(folder)


@pytest.fixture(scope="module")
def fig(study: Study) -> Figure:
    return FIGURES["ranking"](study)


def test_rows_are_in_the_order_of_the_deepest_least_warmed_mean(fig: Figure) -> None:
    assert titles(fig) == ["2 layers", "4 layers"]
    assert rows(fig.axes[0]) == ["sub", "peri", "pre", "post"]
    assert fig.axes[0].get_ylim() == (3.5, -0.5)  # the first on top
    assert "ranked by failed runs, then by the mean at n_layers=4, warmup_steps=0" in words(fig)


def test_mean_and_interval_are_those_over_seeds(fig: Figure) -> None:
    ax = panel(fig, "4 layers")
    bars, intervals = drawn(ax, "mean:"), drawn(ax, "interval:")
    y = {"peri:0": 1 - 0.23, "peri:2": 1 + 0.23, "pre:0": 2 - 0.23}
    for name, mean in (("peri:0", 2.2), ("peri:2", 2.4), ("pre:0", 2.3)):
        same(bars[name], [mean], [y[name]])
        same(intervals[name], [mean - HALF, mean + HALF], [y[name]] * 2)
    same(bars["sub:0"], [2.05], [-0.23])
    half = 12.7062047362 * 0.05  # two seeds: the t quantile of one degree, times half their distance
    same(intervals["sub:0"], [2.05 - half, 2.05 + half], [-0.23] * 2)
    assert "sub:2" not in bars  # sub has no run with warmup 2
    assert len(bars) == 7


def test_every_run_is_a_marker_of_its_outcome(study: Study, fig: Figure) -> None:
    finished = study.finished
    seen: dict[str, str] = {}
    for n_layers in (2, 4):
        ax = panel(fig, f"{n_layers} layers")
        for outcome, marker in style.OUTCOME_MARKERS.items():
            for run, line in drawn(ax, f"{outcome}:").items():
                assert line.get_marker() == marker
                ((x, y),) = points(line)
                row = finished[finished["run_id"] == run].iloc[0]
                assert row["n_layers"] == n_layers
                assert rows(fig.axes[0])[round(y)] == row["placement"]
                assert (y > round(y)) == (row["warmup_steps"] == 2)
                assert outcome == "diverged" or x == pytest.approx(row["final_val_loss"])
                seen[run] = outcome
    assert seen == dict(zip(finished["run_id"], finished["outcome"], strict=True))
    legend = [t.get_text() for t in fig.legends[0].get_texts()]
    assert legend[:2] == ["no warmup", "warmup 2"]
    assert set(legend[2:]) == set(finished["outcome"])


def test_diverged_runs_stand_at_the_edge_and_their_arm_has_no_mean(fig: Figure) -> None:
    ax = panel(fig, "4 layers")
    right = ax.get_xlim()[1]
    spots = [points(line)[0] for line in drawn(ax, "diverged:").values()]
    assert len({x for x, _ in spots}) == 2  # side by side
    assert all(3.3 < x < right for x, _ in spots)
    assert {y for _, y in spots} == {3 - 0.23}
    assert math.isnan(points(drawn(ax, "mean:")["post:0"])[0][0])
    assert texts(ax, "diverged:") == {"post:0": "2"}
    assert [t.get_text() for t in ax.texts if str(t.get_gid()).startswith("head:")] == ["learned", "diverged"]
    assert texts(panel(fig, "2 layers"), "diverged:") == {}
    assert "right edge: diverged" in words(fig)
    assert "no mean where a run failed" in words(fig)
    assert "2 of 48 runs diverged" in words(fig)


def test_counts_stand_on_the_right_and_few_seeds_are_marked(study: Study, fig: Figure) -> None:
    ax = panel(fig, "4 layers")
    learned = {f"{c.row}:{c.arm}": (c.learned, c.n) for c in rank(study).cells if c.column == "4"}
    assert learned["peri:0"] == (5, 5)
    assert learned["post:0"][0] < 3
    found = texts(ax, "learned:")
    assert found == {k: f"{n}/{of}" + "*" * (of < 5) for k, (n, of) in learned.items()}
    assert found["sub:0"] == "2/2*"
    assert "*: fewer than 5 seeds" in words(fig)


def test_both_entropies_are_drawn_and_every_end_is_inside(fig: Figure) -> None:
    for ax in fig.axes:
        lines = {k: line.get_xdata()[0] for k, line in drawn(ax, "reference:").items()}  # type: ignore[index]
        assert lines == pytest.approx({"bigram": H2, "unigram": H1})
        assert ax.get_xlim() == fig.axes[0].get_xlim()
    left, right = fig.axes[0].get_xlim()
    assert left < 2.0
    assert right > 3.3


def test_an_interval_beyond_the_axis_has_an_arrow(tmp_path: Path) -> None:
    losses = {"pre": [2.0, 3.0], "post": [2.2, 2.21], "peri": [2.3, 2.31]}
    fig = FIGURES["ranking"](load(write(tmp_path, losses)))
    (ax,) = fig.axes
    left, right = ax.get_xlim()
    (low, _), (high, _) = points(drawn(ax, "interval:")["pre:"])
    assert low < left
    assert right < high
    arrows = {str(line.get_marker()): points(line)[0][0] for line in ax.get_lines() if line.get_gid() == "beyond:pre:"}
    assert arrows == {"<": left, ">": right}
    assert right - left < 3  # the axis stays readable


def test_equal_means_keep_the_order_of_the_configuration_and_one_without_runs_is_last(tmp_path: Path) -> None:
    folder = write(tmp_path, {"sub": [2.2], "lns": [2.1], "peri": [2.2], "post": [2.2]}, n_layers=3, warmup_steps=0)
    write(tmp_path, {"pre": [2.0], "deepnorm": [1.9]}, n_layers=3, warmup_steps=2)
    assert rank(load(folder)).rows == ["lns", "post", "peri", "sub", "pre", "deepnorm"]


def test_failed_runs_rank_before_losses(tmp_path: Path) -> None:
    """pre has one failed run and the lowest loss; both runs of peri failed."""
    losses: dict[str, list[float | None]] = {"pre": [None, 2.0], "post": [2.3, 2.4], "peri": [None, None]}
    order = rank(load(write(tmp_path, losses)))
    assert order.rows == ["post", "pre", "peri"]
    assert order.rule == "ranked by failed runs, then by the mean"
    assert [math.isnan(cell.low) for cell in order.cells] == [False, True, True]


def test_a_run_that_ended_above_its_start_stretches_no_axis_and_ranks_by_its_loss(tmp_path: Path) -> None:
    fig = FIGURES["ranking"](load(write(tmp_path, {"pre": [900.0, 2.0], "post": [3.2, 3.3], "peri": [2.2, 2.3]})))
    (ax,) = fig.axes
    assert rows(ax) == ["peri", "post", "pre"]
    assert ax.get_xlim()[1] < 5
    ((x, _),) = points(next(iter(drawn(ax, "diverged:").values())))
    assert 3.3 < x < ax.get_xlim()[1]
    assert math.isnan(points(drawn(ax, "mean:")["pre:"])[0][0])


def test_a_text_field_with_three_values_is_ranked_and_two_are_not(tmp_path: Path) -> None:
    for norm, loss in (("layernorm", 2.3), ("rmsnorm", 2.1), ("dyt", 2.2)):
        write(tmp_path, {"pre": [loss, loss + 0.02]}, norm=norm)
    study = load(tmp_path / STUDY)
    assert ranked_field(study) == "norm"
    (ax,) = FIGURES["ranking"](study).axes
    assert rows(ax) == ["rmsnorm", "dyt", "layernorm"]
    write(tmp_path, {"post": [2.0]}, norm="dyt")
    assert ranked_field(load(tmp_path / STUDY)) == "norm"  # three norms, two placements
    with pytest.raises(Lacks, match="it needs a text field, such as placement, with at least 3 values"):
        FIGURES["ranking"](load(tmp_path / STUDY, {"norm": "dyt"}))


def test_other_fields_are_held_at_one_value_that_the_title_names(tmp_path: Path) -> None:
    for rate, shift in ((1e-3, 0.0), (3e-3, 0.5)):
        write(tmp_path, {"pre": [2.1 + shift], "post": [2.2 - shift], "peri": [2.15]}, peak_lr=rate)
    fig = FIGURES["ranking"](load(tmp_path / STUDY))
    (ax,) = fig.axes
    assert rows(ax) == ["post", "peri", "pre"]
    assert "peak_lr=3e-3" in words(fig)
    assert len(drawn(ax, "learned:")) + len(drawn(ax, "spiked:")) + len(drawn(ax, "partial:")) == 3


def test_arms_have_at_most_five_colors(tmp_path: Path) -> None:
    for warmup in (0, 1, 2, 3, 4):
        write(tmp_path, {"pre": [2.1], "post": [2.2], "peri": [2.3]}, warmup_steps=warmup)
    fig = FIGURES["ranking"](load(tmp_path / STUDY))
    bars = drawn(fig.axes[0], "mean:")
    assert len({to_hex(line.get_color()) for line in bars.values()}) == 5
    heights = sorted(points(line)[0][1] for line in bars.values())
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.15
