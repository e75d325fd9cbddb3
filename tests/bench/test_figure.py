"""The figure of the benchmark: what stands on its axes is what stands in the tables; the same bytes every time."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import matplotlib
import measured
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from measured import by_hand, write
from PIL import Image

from normstudy.bench import figure, tables
from normstudy.bench.rows import ROWS, Goal, Row, Sample
from normstudy.figures import style

HERE = Path(__file__).parents[1]  # where measured.py is
SAMPLES = [
    *by_hand(
        {"sorted": [2.0, 6.0, 5.0, 8.0], "reversed": [2.0, 2.0, 2.5, 1.0]}, case="10000", metric="per_s", unit="1"
    ),
    *by_hand({"sorted": [30.0, 15.0, 90.0], "reversed": [1.0, 1.0, 1.0]}),
]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "a", measured.ROW)


def drawn(tmp_path: Path, samples: list[Sample]) -> Figure:
    write(tmp_path, samples)
    with matplotlib.rc_context(style.rc()):  # type: ignore[arg-type]
        return figure.figure(tables.read(tmp_path, [samples[0].row]))


def panel(fig: Figure, title: str) -> Axes:
    (found,) = [ax for ax in fig.axes if ax.get_title(loc="left").startswith(title)]
    return found


def legend(fig: Figure) -> list[str]:
    return [text.get_text() for part in fig.subfigs for found in part.legends for text in found.get_texts()]


def points(ax: Axes) -> dict[str, Line2D]:
    return {str(line.get_gid()): line for line in ax.get_lines() if ":" in str(line.get_gid())}


def test_ratios_and_their_goals(tmp_path: Path) -> None:
    """1, 3, 2, 8: median 2.5, quartiles 1.75 and 4.25."""
    ax = panel(drawn(tmp_path, SAMPLES), "Ratios")
    found = points(ax)
    assert list(found) == [f"a:10000:{goal.title}" for goal in measured.GOALS[:2]]
    colors = [to_hex(str(line.get_color())).upper() for line in found.values()]
    assert colors == [figure.COLORS["met"], figure.COLORS["not met"]]
    for line, goal in zip(found.values(), measured.GOALS, strict=False):
        (y,) = np.asarray(line.get_ydata())
        beside = [li for li in ax.get_lines() if np.ptp(np.asarray(li.get_ydata())) == 0 and li.get_ydata()[0] == y]
        xs = [np.asarray(li.get_xdata()).tolist() for li in beside]
        assert sorted(xs, key=len) == [[2.5], [goal.limit], [1.0, 8.0], [1.75, 4.25]]
        (marker,) = [li for li in beside if np.asarray(li.get_xdata()).tolist() == [goal.limit]]
        assert marker.get_marker() == ">"  # at least
    names = [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]
    assert names == [f"a  10000: {goal.title}" for goal in measured.GOALS[:2]]
    assert ax.get_xscale() == "log"


def test_values_as_a_part_of_their_goal(tmp_path: Path) -> None:
    ax = panel(drawn(tmp_path, SAMPLES), "Times and sizes")
    assert {gid: np.asarray(line.get_xdata()).tolist() for gid, line in points(ax).items()} == {
        "a:1000:time to sort": [0.5]
    }
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a  1000: time to sort (30 of 60 s)"]


def test_a_panel_exists_where_it_has_something_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def titles(samples: list[Sample]) -> list[str]:
        return [ax.get_title(loc="left") for ax in drawn(tmp_path, samples).axes]

    assert len(titles(SAMPLES)) == 2
    assert len(titles(SAMPLES[:8])) == 1
    assert len(titles(SAMPLES[8:])) == 1
    assert titles(by_hand({"reversed": [1.0]})) == []  # a number without a goal or an opponent: the table has it
    assert titles(by_hand({"sorted": [0.0]})) == []  # no place on a logarithmic axis
    monkeypatch.setattr(measured, "GOALS", [replace(measured.GOALS[2], limit=0.0)])
    assert titles(by_hand({"sorted": [1.0]})) == []  # nothing is a part of 0


def test_the_legend_has_what_is_there(tmp_path: Path) -> None:
    told = legend(drawn(tmp_path, SAMPLES))
    assert told[:4] == ["median, met", "median, not met", "goal: at least", "goal: at most"]
    assert legend(drawn(tmp_path, SAMPLES[8:]))[:2] == ["median, met", "goal: at most"]


# ---- row e --------------------------------------------------------------------------------------------


def cost_samples() -> list[Sample]:
    """A run-step that goes by n_layers^0.8 and two parts that cost the same at seq_len 128, three rounds each."""
    out = []
    for i, noise in enumerate((0.5, 1.0, 3.0)):
        for n in (2, 4, 8):
            out.append(Sample("e", f"n_layers={n}", "normstudy", "ms_per_run_step", "ms", i, noise * n**0.8))
            out.append(Sample("e", f"seq_len={32 * n}", "normstudy", "ms_per_run_step", "ms", i, noise * n))
        for n in (64, 128, 256):
            out.append(Sample("e", f"attention, seq_len={n}", "attention", "ms_per_part", "ms", i, noise * n**2 / 128))
            out.append(Sample("e", f"norm, seq_len={n}", "norm", "ms_per_part", "ms", i, noise * n))
        for case, slope, theory in (
            ("run-step vs n_layers", 0.8, 1.0), ("run-step vs seq_len", 1.0, 1.0),
            ("attention vs seq_len", 2.0, 2.0), ("norm vs seq_len", 1.0, 1.0),
        ):  # fmt: skip
            out.append(Sample("e", case, case.split()[0].replace("run-step", "normstudy"), "slope", "1", i, slope))
            out.append(Sample("e", case, "theory", "slope", "1", i, theory))
        out.append(Sample("e", "attention = norm", "attention", "crossover_seq_len", "tokens", i, 127.0 + i))
        out.append(Sample("e", "attention = norm", "theory", "crossover_seq_len", "tokens", i, 100.0))
    return out


@pytest.fixture
def costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure of row e alone."""
    goals = [
        Goal("e", "run-step vs n_layers", "slope", "slope", "normstudy"),
        Goal("e", "attention = norm", "seq_len of equal cost", "crossover_seq_len", "attention"),
        Goal("e", "attention = norm", "by the theory", "crossover_seq_len", "theory"),
    ]
    monkeypatch.setitem(sys.modules, "handmade_row_e", types.SimpleNamespace(GOALS=goals, measure=None))  # type: ignore[arg-type]
    monkeypatch.setitem(ROWS, "e", Row("handmade_row_e", "measure", "by hand"))
    return drawn(tmp_path, cost_samples())


def test_costs_stand_at_their_medians_with_fit_and_theory(costs: Figure) -> None:
    assert [ax.get_xlabel() for ax in costs.axes] == ["n_layers", "seq_len", "seq_len"]
    layers, _, length = costs.axes
    assert layers.get_title(loc="left") == "slope 0.80, theory 1.00"
    assert length.get_title(loc="left") == "attention: slope 2.00, theory 2.00\nnorm: slope 1.00, theory 1.00"
    lines = points(layers)
    sizes = np.array([2, 4, 8])
    np.testing.assert_allclose(lines["cost:run-step:n_layers"].get_xdata(), sizes)
    np.testing.assert_allclose(lines["cost:run-step:n_layers"].get_ydata(), sizes**0.8)
    for kind, slope in (("fit", 0.8), ("theory", 1.0)):  # both through the center of the medians
        np.testing.assert_allclose(lines[f"{kind}:run-step:n_layers"].get_xdata(), [2, 8])
        np.testing.assert_allclose(lines[f"{kind}:run-step:n_layers"].get_ydata(), 4**0.8 * np.array([0.5, 2]) ** slope)
    ranges = [np.asarray(li.get_ydata()) for li in layers.get_lines() if np.ptp(np.asarray(li.get_xdata())) == 0]
    np.testing.assert_allclose(ranges, [[0.5 * n**0.8, 3 * n**0.8] for n in sizes])
    assert (layers.get_xscale(), layers.get_yscale()) == ("log", "log")


def test_the_crossover_is_where_it_was_measured(costs: Figure) -> None:
    *whole, length = costs.axes
    crossing = points(length)["crossing:attention = norm"]
    assert np.asarray(crossing.get_xdata()).tolist() == [128.0, 128.0]
    assert not [gid for ax in whole for gid in points(ax) if gid.startswith("crossing")]
    assert legend(costs) == ["attention", "norm", "run-step", "slope by the theory", "equal cost"]


def test_what_a_formula_gives_is_no_bar(costs: Figure) -> None:
    """Slopes have panels of their own, and no goal."""
    assert [ax for ax in costs.axes if ax.get_title(loc="left").startswith(("Ratios", "Times"))] == []


def test_both_halves_of_the_figure(tmp_path: Path, costs: Figure) -> None:
    write(tmp_path, SAMPLES)
    both = figure.figure(tables.read(tmp_path, ["a", "e"]))
    assert len(both.axes) == 2 + len(costs.axes)
    assert both.get_figheight() > costs.get_figheight() + 1
    assert set(legend(both)) > set(legend(costs))


def test_the_same_bytes_without_torch_and_whatever_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, SAMPLES)
    first = figure.draw(tables.read(tmp_path, ["a"]), tmp_path).read_bytes()
    with Image.open(tmp_path / "bench.png") as image:
        assert image.info["Software"] == f"Matplotlib {matplotlib.__version__}"
        assert image.width <= style.TWO_COLUMNS * 220
    (tmp_path / "bench.png").unlink()
    code = (
        f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(HERE)!r})\n"
        "import matplotlib; matplotlib.rcParams['font.size'] = 20\n"
        "from pathlib import Path; import measured; from normstudy.bench import tables\n"
        "from normstudy.bench.rows import ROWS; from normstudy.bench import figure as bench; ROWS['a'] = measured.ROW\n"
        f"folder = Path({str(tmp_path)!r}); bench.draw(tables.read(folder, ['a']), folder)\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert (tmp_path / "bench.png").read_bytes() == first


@pytest.mark.parametrize("numbers", [[1.0], [0.999, 1.001], [0.2, 7.0], [1e-3, 1e4]])
def test_every_axis_has_ticks_to_read(numbers: list[float], tmp_path: Path) -> None:
    samples = by_hand({"sorted": numbers, "reversed": [1.0] * len(numbers)}, case="10000", metric="per_s", unit="1/s")
    fig = drawn(tmp_path, samples)
    ax = fig.axes[0]
    low, high = ax.get_xlim()
    assert low < min(*numbers, 1.0)
    assert high > max(*numbers, 1.0)
    shown = [t for t in ax.xaxis.get_major_locator().tick_values(low, high) if low <= t <= high]
    assert 2 <= len(shown) <= 14
