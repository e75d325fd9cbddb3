"""The figures of a search for critical values, drawn from hand-made tables: every run once, bounds as arrows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import EVERY_STUDY, drawn, panel, points, titles, words
from handmade import STUDY, handmade_config, write_handmade_run
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from normstudy.analysis.grid import phrase
from normstudy.analysis.outcomes import FAILED, OUTCOMES
from normstudy.analysis.select import native
from normstudy.figures import draw, style, together
from normstudy.figures.draw import FIGURES, OF_SEARCH, plot_study
from normstudy.figures.study import Lacks, Study, load
from normstudy.search.answer import critical_values
from normstudy.search.rounds import CRASHED, FAIL, NOT_LEARN, Run, replay
from normstudy.search.settings import Settings, keep

PLACES = (("pre", 1), ("pre", 3), ("post", 1), ("post", 3))
RATES = Settings("peak_lr", 1e-3, 0.1, max_runs=20)
WARMUPS = Settings("warmup_steps", 0, 30, max_runs=20)

Fate = Callable[[str, int, float, int], str]  # placement, n_layers, value, seed -> fate of a hand-made run


def search(root: Path, settings: Settings, fate: Fate, places: tuple[tuple[str, int], ...] = PLACES) -> Path:
    """Search the critical value of each place, a placement and a depth, with hand-made runs; return the folder."""
    for placement, depth in places:

        def outcome_of(run: Run, placement: str = placement, depth: int = depth) -> str:
            found = fate(placement, depth, run.value, run.seed)
            value = int(run.value) if settings.axis.whole else run.value
            cell = {"n_layers": depth, settings.of: value, "seed": run.seed}
            config = handmade_config(root, placement=placement, n_steps=30, **cell)  # type: ignore[arg-type]
            write_handmade_run(root / STUDY, config, found)
            return CRASHED if found == "failed" else found

        replay(settings, outcome_of)
    keep(root / STUDY, settings)
    return root / STUDY


def by_rate(placement: str, depth: int, value: float, seed: int) -> str:
    """Pre never fails. Post with one layer always does; with three, above 1e-2, and its sixth run crashes."""
    if placement == "pre" or (depth == 3 and value < 1e-2):
        return "failed" if (placement, seed) == ("post", 5) else "learned"
    return "diverged" if value > 3e-2 else "stuck"


def by_warmup(placement: str, depth: int, value: float, seed: int) -> str:
    return "stuck" if placement == "post" and value < 3 * depth else "learned"


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(tmp_path_factory.mktemp("rates"), RATES, by_rate)


@pytest.fixture(scope="module")
def study(rates: Path) -> Study:
    return load(rates)


@pytest.fixture(scope="module")
def warmups(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load(search(tmp_path_factory.mktemp("warmups"), WARMUPS, by_warmup))


def marks(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    """Outcome -> the points of a panel's runs."""
    return {outcome: points(line) for outcome, line in drawn(ax, "runs:").items()}


def of_panel(study: Study, title: str) -> pd.DataFrame:
    runs = study.finished
    said = {
        c: [phrase(c, study.text(c, native(c, v))) for v in runs[c]] for c in ("placement", "n_layers", "warmup_steps")
    }
    return runs[[all(part in texts for part in title.split(", ")) for texts in zip(*said.values(), strict=True)]]


def edge_rows(study: Study, edge: str, **place: object) -> pd.DataFrame:
    found, _ = critical_values(study.folder)
    found = found[found["edge"] == edge]
    for column, value in place.items():
        found = found[found[column] == value]
    return found


def expected_marks(study: Study, title: str, of: str) -> dict[str, list[float]]:
    parts = of_panel(study, title).groupby("outcome")[of]
    return {str(outcome): sorted(part.astype(float)) for outcome, part in parts}


@pytest.mark.parametrize("name", ["critical_curve", "phase_map"])
@pytest.mark.parametrize("of", ["peak_lr", "warmup_steps"])
def test_every_run_is_one_mark_at_its_value(name: str, of: str, study: Study, warmups: Study) -> None:
    study = study if of == "peak_lr" else warmups
    fig, axis = FIGURES[name](study), 0 if name == "critical_curve" else 1
    n = 0
    for title in titles(fig):
        found = {o: sorted(p[axis] for p in some) for o, some in marks(panel(fig, title)).items()}
        wanted = expected_marks(study, title, of)
        assert {o: pytest.approx(v) for o, v in wanted.items()} == found
        n += sum(map(len, found.values()))
    assert n == len(study.finished)
    assert len(titles(fig)) == (4 if name == "critical_curve" else 2)


def test_marks_show_outcomes_by_shape_and_color(study: Study) -> None:
    assert list(style.OUTCOME_COLORS) != []
    assert set(style.OUTCOME_COLORS) == set(OUTCOMES)
    assert len(set(style.OUTCOME_COLORS.values())) == len(OUTCOMES)
    lines = drawn(panel(FIGURES["phase_map"](study), "post-norm"), "runs:")
    assert set(lines) == {"learned", "stuck", "diverged"}
    for outcome, line in lines.items():
        assert line.get_marker() == style.OUTCOME_MARKERS[outcome]
        assert to_hex(line.get_color()) == style.OUTCOME_COLORS[outcome].lower()


def test_failed_runs_lie_above_the_curve_and_others_below(study: Study) -> None:
    fig = FIGURES["critical_curve"](study)
    for ax in fig.axes:
        for outcome, some in marks(ax).items():
            assert all(y > 1 if outcome in FAILED else y < 0 for _, y in some)
        low, high = ax.get_ylim()
        assert all(low < y < high for some in marks(ax).values() for _, y in some)


def test_lines_join_the_critical_values_and_bars_are_their_intervals(study: Study) -> None:
    (ax,) = FIGURES["critical_depth"](study).axes
    (row,) = edge_rows(study, FAIL, placement="post", n_layers=3).itertuples()
    line = drawn(ax, f"edge:{FAIL}:post:")[""]
    at = [(x, y) for x, y in points(line) if not np.isnan(y)]
    assert at == [(pytest.approx(3, abs=0.6), pytest.approx(row.value))]
    assert to_hex(line.get_color()) == style.PLACEMENT_COLORS["post"].lower()
    bars = [segment for bar in ax.collections for segment in bar.get_segments()]  # type: ignore[attr-defined]
    assert sorted(bars[0][:, 1]) == pytest.approx([row.low, row.high])
    assert len(bars) == 2  # one for each edge of the only cell whose edges lie in the range
    filled = {edge: drawn(ax, f"edge:{edge}:post:")[""].get_markerfacecolor() for edge in (FAIL, NOT_LEARN)}
    assert filled == {FAIL: style.PLACEMENT_COLORS["post"], NOT_LEARN: "white"}


@pytest.mark.parametrize("name", ["critical_depth", "phase_map"])
def test_bounds_are_open_arrows_that_point_out_of_the_range(name: str, study: Study) -> None:
    fig = FIGURES[name](study)
    for bound, n, end in (("above", 2, RATES.high), ("below", 1, RATES.low)):  # cells: pre, and post with one layer
        lines = [line for ax in fig.axes for line in ax.get_lines() if str(line.get_gid()).startswith(f"{bound}:")]
        assert len(lines) == 2 * n  # edges
        for line in lines:
            assert points(line)[0][1] == end
            assert line.get_markerfacecolor() == "white"
            tips = [y for _, y in line.get_marker()]  # type: ignore[union-attr,misc]
            assert (max(tips) > 0) == (bound == "above")
            assert (min(tips) < 0) == (bound == "below")
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert {"half fail (95 % interval)", "half do not learn", "beyond the range"} < set(legend)


def test_the_bounds_of_a_warmup_point_down_and_its_curve_falls(warmups: Study) -> None:
    depth = FIGURES["critical_depth"](warmups)
    arrows = [line for line in depth.axes[0].get_lines() if str(line.get_gid()).startswith(("above:", "below:"))]
    assert {str(line.get_gid()).split(":")[0] for line in arrows} == {"below"}  # pre learns without any warmup
    assert {points(line)[0][1] for line in arrows} == {0}
    fig = FIGURES["critical_curve"](warmups)
    ax = panel(fig, "post-norm, 3 layers")
    curve = sorted(points(drawn(ax, f"share:{FAIL}")[""]))
    assert curve[0][0] == pytest.approx(0)
    assert curve[-1][0] == pytest.approx(30, abs=1)
    assert all(a[1] >= b[1] for a, b in itertools.pairwise(curve))
    (row,) = edge_rows(warmups, FAIL, placement="post", n_layers=3).itertuples()
    (band,) = [p for p in ax.patches if p.get_gid() == f"interval:{FAIL}"]
    assert isinstance(band, Rectangle)
    assert band.get_x() == pytest.approx(row.low, abs=0.6)
    assert band.get_x() + band.get_width() == pytest.approx(row.high, abs=0.6)
    assert row.low < np.interp(0.5, [y for _, y in curve[::-1]], [x for x, _ in curve[::-1]]) < row.high


def test_a_crashed_run_is_counted_and_not_drawn(study: Study, tmp_path: Path) -> None:
    """The search went on from it: the other runs alone, replayed, would end before the first round is complete."""
    assert study.unfinished == 1
    for name in OF_SEARCH:
        assert "not shown: 1 unfinished or failed" in words(FIGURES[name](study)), name
    sixth = load(search(tmp_path, RATES, lambda *run: "failed" if run[-1] == 1005 else by_rate(*run), PLACES[3:]))
    for which, place, title in ((study, {"placement": "post", "n_layers": 3}, "post-norm, 3 layers"), (sixth, {}, "")):
        row = edge_rows(which, FAIL, **place).iloc[0]
        ax = panel(FIGURES["critical_curve"](which), title)
        (band,) = [p for p in ax.patches if p.get_gid() == f"interval:{FAIL}"]
        assert isinstance(band, Rectangle)
        ends = band.get_x(), band.get_x() + band.get_width()
        assert ends == pytest.approx((row["low"], row["high"]), rel=6e-3)


@pytest.mark.parametrize(
    ("places", "crashed"), [(PLACES, "post"), (PLACES[1::2], "pre"), ((("post", 1), ("post", 2), ("post", 3)), 3)]
)
def test_a_cell_of_crashed_runs_only_is_a_cell(
    places: tuple[tuple[str, int], ...], crashed: str | int, tmp_path: Path
) -> None:
    study = load(search(tmp_path, RATES, lambda *run: "failed" if crashed in run[:2] else by_rate(*run), places))
    figures = {name: FIGURES[name](study) for name in OF_SEARCH}
    bands = [p for ax in figures["critical_curve"].axes for p in ax.patches if p.get_gid() == f"interval:{FAIL}"]
    values = critical_values(study.folder)[0].query("edge == @FAIL")
    ends = [p.get_x() for p in bands if isinstance(p, Rectangle)]
    assert sorted(ends) == pytest.approx(sorted(values["low"]), rel=6e-3)
    assert len(ends) == len(places)


def test_one_cell_is_drawn(tmp_path: Path) -> None:
    one = load(search(tmp_path, RATES, by_rate, (("post", 3),)))
    for name in OF_SEARCH:
        fig = FIGURES[name](one)
        assert titles(fig) == [""], name
        if name != "critical_curve":
            assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["post"]


def test_a_searched_depth_is_the_y_axis(tmp_path: Path) -> None:
    settings = Settings("n_layers", 1, 8, max_runs=14)
    folder = search(tmp_path, settings, lambda p, _, value, seed: "stuck" if p == "post" and value > 4 else "learned")
    fig = FIGURES["critical_depth"](load(folder))
    assert (fig.axes[0].get_xlabel(), fig.axes[0].get_ylabel()) == ("placement", "critical n_layers")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn, and by no second process."""

    def nothing(study: Study) -> Figure:
        raise Lacks("quick")

    monkeypatch.setattr(draw, "FIGURES", dict.fromkeys(FIGURES, nothing))
    monkeypatch.setattr(together, "FEW_BYTES", 10**9)


@pytest.mark.usefixtures("quick")
def test_figures_of_a_search_are_drawn_by_default_only_if_there_is_one(tmp_path: Path, rates: Path) -> None:
    write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path))
    for plot in (plot_study, together.plot):
        assert list(plot(tmp_path / STUDY).found) == list(EVERY_STUDY)
        assert list(plot(rates).found) == list(FIGURES)


def test_a_study_without_a_search_has_none_of_its_figures(tmp_path: Path) -> None:
    write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path))
    for name in OF_SEARCH:
        with pytest.raises(Lacks, match="no search for critical values"):
            FIGURES[name](load(tmp_path / STUDY))
    asked = together.plot(tmp_path / STUDY, out=tmp_path / "out", only=["phase_map"])
    assert len(asked.skipped) == 1


@pytest.mark.usefixtures("quick")
def test_figures_that_average_over_seeds_refuse_the_values_of_a_search(study: Study) -> None:
    n, names = study.finished["peak_lr"].nunique(), ", ".join(map(repr, EVERY_STUDY))
    searched = ", ".join(map(repr, OF_SEARCH))
    assert plot_study(study.folder).skipped == [
        f"figures {names} not drawn: the runs have {n} values of peak_lr: select at most 6 values with --where",
        f"figures {searched} not drawn: quick",
    ]
    one = plot_study(study.folder, where={"peak_lr": str(study.finished["peak_lr"].iloc[0])})
    assert set(one.found.values()) == {"quick"}


def test_where_narrows_and_equal_tables_give_equal_bytes(rates: Path, tmp_path: Path) -> None:
    written = []
    for out in (tmp_path / "a", tmp_path / "b"):
        result = plot_study(rates, where={"placement": "post"}, only=["phase_map"], out=out, fmt="svg")
        written.append([path.read_bytes() for path in result.paths])
    assert written[0] == written[1]
    fig: Figure = FIGURES["critical_curve"](load(rates, {"placement": "post"}))
    assert titles(fig) == ["1 layer", "3 layers"]
