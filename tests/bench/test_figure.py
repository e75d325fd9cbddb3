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
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from measured import by_hand, write
from PIL import Image

from normstudy.bench import figure, tables
from normstudy.bench.rows import ROWS, Goal, Row, Sample
from normstudy.figures import style
from normstudy.figures.paper import TWO_COLUMNS

pytestmark = pytest.mark.bench

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
COLORS = list(figure.COLORS.values())
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
    with style.rc():
        return figure.figure(tables.read(tmp_path, [samples[0].row]))


def legend(fig: Figure) -> list[str]:
    return [text.get_text() for part in fig.subfigs for found in part.legends for text in found.get_texts()]


def bars(ax: Axes) -> dict[str, tuple[Array, Array]]:
    """Label -> the medians' coordinates (2, n), and the two ends of each range (n, 2 ends, 2 coordinates)."""
    found = {}
    for container in ax.containers:
        assert isinstance(container, ErrorbarContainer)
        medians, _, (ranges,) = container.lines
        assert medians is not None
        found[container.get_label()] = np.array(medians.get_data(), float), np.array(ranges.get_segments())
    return found


def test_every_number_with_a_goal_is_drawn_as_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1, 3, 2, 8: median 2.5. 30, 15 and 90 of at most 60: 0.25 to 1.5."""
    monkeypatch.setattr(measured, "GOALS", [replace(measured.GOALS[0], limit=10.0), *measured.GOALS[1:]])
    (ax,) = drawn(tmp_path, SAMPLES).axes
    found = bars(ax)
    assert found["goal met"][0].tolist() == [[0.5], [2]]
    assert found["goal met"][1].tolist() == [[[0.25, 2], [1.5, 2]]]
    np.testing.assert_allclose(found["goal not met"][0], [[0.25, 2.5e-6], [0, 1]])
    np.testing.assert_allclose(found["goal not met"][1][..., 0], [[0.1, 0.8], [1e-6, 8e-6]])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "a  10000: sorted, against reversed", "a  10000: the same | unreachable", "a  1000: time to sort",
    ]  # fmt: skip
    (right,) = ax.child_axes
    assert [label.get_text() for label in right.get_yticklabels()] == [
        "2.5 [1, 8], goal at least 10", "2.5 [1, 8], goal at least 1000000", "30 [15, 90] s, goal at most 60 s",
    ]  # fmt: skip
    assert ax.get_xscale() == "log"
    assert [to_hex(c.lines[0].get_color()).upper() for c in ax.containers] == COLORS


def test_a_panel_exists_where_it_has_something_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panels(samples: list[Sample]) -> int:
        return len(drawn(tmp_path, samples).axes)

    assert panels(SAMPLES) == panels(SAMPLES[:8]) == panels(SAMPLES[8:]) == 1
    assert panels(by_hand({"reversed": [1.0]})) == 0  # a number without a goal: the table has it
    assert panels(by_hand({"sorted": [0.0]})) == 0  # no place on a logarithmic axis
    monkeypatch.setattr(measured, "GOALS", [replace(measured.GOALS[2], limit=0.0)])
    assert panels(by_hand({"sorted": [1.0]})) == 0  # nothing is a part of 0


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
    return out


@pytest.fixture
def costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure of row e alone."""
    goals = [Goal("e", "run-step vs n_layers", "slope", "slope", "normstudy")]
    monkeypatch.setitem(sys.modules, "handmade_row_e", types.SimpleNamespace(GOALS=goals, measure=None))  # type: ignore[arg-type]
    monkeypatch.setitem(ROWS, "e", Row("handmade_row_e", "measure", "by hand"))
    return drawn(tmp_path, cost_samples())


def test_costs_stand_at_their_medians_with_the_theory_through_their_center(costs: Figure) -> None:
    assert [(ax.get_title(), ax.get_xlabel()) for ax in costs.axes] == [
        ("run-step", "n_layers"), ("run-step", "seq_len"), ("parts of a block", "seq_len"),
    ]  # fmt: skip
    layers, _, length = costs.axes
    sizes = np.array([2, 4, 8])
    medians, ranges = bars(layers)["run-step"]
    np.testing.assert_allclose(medians, [sizes, sizes**0.8])
    np.testing.assert_allclose(ranges[..., 1], [[0.5 * n**0.8, 3 * n**0.8] for n in sizes])
    (theory,) = (line for line in layers.get_lines() if line.get_linestyle() == "--")
    np.testing.assert_allclose(theory.get_data(), [sizes, 4**0.8 * sizes / 4])  # of slope 1
    found = bars(length)
    assert [*found] == ["attention", "norm"]
    np.testing.assert_allclose(found["attention"][0], [[64, 128, 256], [32, 128, 512]])
    assert {(ax.get_xscale(), ax.get_yscale()) for ax in costs.axes} == {("log", "log")}
    assert legend(costs) == ["run-step", "attention", "norm"]


def test_both_halves_of_the_figure(tmp_path: Path, costs: Figure) -> None:
    write(tmp_path, SAMPLES)
    both = figure.figure(tables.read(tmp_path, ["a", "e"]))
    assert len(both.axes) == 1 + len(costs.axes)
    assert both.get_figheight() > costs.get_figheight() + 1
    assert legend(both) == ["goal met", "goal not met", *legend(costs)]


def test_the_same_bytes_without_torch_and_whatever_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, SAMPLES)
    figure.draw(tables.read(tmp_path, ["a"]), tmp_path)
    first = (tmp_path / "bench.png").read_bytes()
    with Image.open(tmp_path / "bench.png") as image:
        assert image.info["Software"] == f"Matplotlib {matplotlib.__version__}"
        assert image.width == TWO_COLUMNS * 220
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
    (ax,) = drawn(tmp_path, by_hand({"sorted": [60 * number for number in numbers]})).axes
    low, high = ax.get_xlim()
    assert low < min(*numbers, 1.0)
    assert high > max(*numbers, 1.0)
    shown = [*ax.xaxis.get_ticklocs(), *ax.xaxis.get_ticklocs(minor=True)]
    assert 3 <= len([at for at in shown if low <= at <= high]) <= 22
