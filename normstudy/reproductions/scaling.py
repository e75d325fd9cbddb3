"""Build reproductions of predictions which say that a quantity is a power of the depth or of the block number."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstudy.analysis.inference import paired_t_interval
from normstudy.figures import axes as on_axes
from normstudy.reproductions import plots
from normstudy.reproductions.entry import Reproduction, Variant, needing
from normstudy.reproductions.verdicts import Band, Finding, Floats, Table, by_block, by_depth, exponent, judge, log


class Curve(NamedTuple):
    """A curve that shows one quantity of one model."""

    name: str  # name in the table of verdicts; {n} is the number of points
    label: str  # name in the legend
    variant: Variant
    measured: tuple[str, str] = ("gradients", "mlp_out_grad")  # kind of measurement (see Need), quantity
    band: Band | None = None  # the predicted exponents
    marker: str = "o"
    pale: bool = False  # whether to draw the curve in the placement's second color

    @property
    def color(self) -> str:
        return plots.PALE[self.variant.placement] if self.pale else plots.COLORS[self.variant.placement]


def entry(
    source: str,
    prediction: str,
    curves: Sequence[Curve],
    *,
    over_blocks: bool = False,
    ylabel: str = "gradient norm of the last\nblock's second MLP matrix",
    anchor: str = "center",
    many_seeds: bool = False,
) -> Reproduction:
    """Build a reproduction that fits power laws to curves.

    over_blocks: `x` is the block number in the deepest model. Otherwise, `x` is the depth, and `y` is measured in the
    last block or the entire model. anchor: see `_draw_powers`.
    """

    def values(table: Table, curve: Curve) -> tuple[Floats, Floats]:
        x, y = (by_block if over_blocks else by_depth)(table, curve.measured[1], curve.variant.name)
        return x[x > 0], y[x > 0]  # leave out block 0, the embeddings

    def findings(table: Table) -> list[Finding]:
        points = [(curve, *values(table, curve)) for curve in curves]
        return [judge(curve.name.format(n=len(x)), exponent(x, y), curve.band) for curve, x, y in points]

    def draw(table: Table, found: list[Finding]) -> Figure:
        """Draw the seeds, their means, and the fitted and predicted power laws, on logarithmic axes."""
        fig, (ax,) = plots.figure()
        for place, curve in enumerate(curves):
            x, y = values(table, curve)
            _draw_powers(ax, x, y, curve, anchor)
            if over_blocks:
                plots.lines(ax, x, y, curve.color, geometric=True)
            else:
                # To keep all curves visible, shift the seeds' points sideways by at most 4 % of the smallest gap
                # between depths, and draw the means of each further curve with smaller markers.
                shift = np.exp(0.08 * np.diff(np.log(x)).min() * ((place + 0.5) / len(curves) - 0.5))
                plots.points(ax, x, y, curve.color, curve.marker, shift, 5 + 1.5 * (len(curves) - 1 - place))
        on_axes.norm_axis(ax)
        ax.set_ylabel(ylabel)
        if over_blocks:
            plots.log_x(ax, np.exp2(np.arange(int(np.log2(x[-1])) + 1)), "block l")
            return plots.finish_lines(fig, prediction, found, {curve.label: curve.color for curve in curves}, "fit")
        plots.log_x(ax, x)
        handles = [plots.line_handle(c.label, c.color, c.marker) for c in curves]
        return plots.finish(fig, prediction, found, [*handles, plots.seed_point_handle(), *plots.area_handles("fit")])

    needs = needing(*((c.measured[0], c.variant) for c in curves), deepest=over_blocks, many=many_seeds)
    return Reproduction(source, prediction, needs, findings, draw)


def _draw_powers(ax: Axes, x: Floats, y: Floats, curve: Curve, anchor: str) -> None:
    """Draw a fitted power law with the 95 % t interval of its exponent, and a fan of the predicted power laws.

    The fan's exponents are those in the prediction's band. If the band has no lower end, the smallest exponent is the
    upper end minus 0.5 if the upper end is at most 0.1, and 0 otherwise. A band of one number becomes a line. The
    fan's lines meet at the point `anchor`: `center` (the geometric means of all `x` and `y`) or `first` (the smallest
    `x` and the geometric mean of its `y`).
    """
    means, band = log(y).mean(1), curve.band
    grid = np.exp(np.linspace(np.log(x[0]) - 0.08, np.log(x[-1]) + 0.08, 101))
    first, center = (log(x)[0], means[0]), (log(x).mean(), means.mean())

    def law(power: float, point: tuple[float, float] = center) -> Floats:
        return np.asarray(np.exp(point[1] + power * (np.log(grid) - point[0])))

    if band is not None:
        low = band.low if np.isfinite(band.low) else 0.0 if band.high > 0.1 else band.high - 0.5
        low_y, high_y = (law(power, first if anchor == "first" else center) for power in (low, band.high))
        ax.fill_between(grid, low_y, high_y, color=plots.BAND_COLOR, lw=2.0 * (low == band.high), zorder=1)
    mean, low, high = paired_t_interval(exponent(x, y))
    ax.fill_between(grid, law(low), law(high), color=curve.color, alpha=0.25, lw=0, zorder=1.5)
    ax.plot(grid, law(mean), color=curve.color, lw=1.0, zorder=3)
