"""Build the entries that predict a power law in depth: a quantity's exponent in the number of blocks, per seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import Need, Reproduction, Sizes, Variant
from normstudy.reproductions.verdicts import Band, Finding, Floats, by_depth, exponent, judge


@dataclass(frozen=True)
class Curve:
    """A model's quantity over depth. name: text in the verdict table; label: legend text; band: predicted exponent."""

    name: str
    label: str
    variant: Variant
    quantity: str = "mlp_out_grad"
    band: Band | None = None
    marker: str = "o"
    pale: bool = False  # drawn in the placement's second color

    @property
    def color(self) -> str:
        return plots.PALE[self.variant.placement] if self.pale else plots.color(self.variant.placement)


def entry(
    source: str,
    prediction: str,
    curves: Sequence[Curve],
    *,
    kind: str = "gradients",
    layer: str | None = "last",
    ylabel: str = "gradient norm of the last\nblock's second MLP matrix",
    many_seeds: bool = False,
) -> Reproduction:
    """Build a tier-0 entry whose curves come from one kind of measurement, by default the last block's gradient."""

    def needs(sizes: Sizes) -> list[Need]:
        seeds = sizes.many_seeds if many_seeds else sizes.seeds
        return [Need(kind, v, sizes.depths, seeds) for v in dict.fromkeys(curve.variant for curve in curves)]

    def values(table: pd.DataFrame, curve: Curve) -> tuple[Floats, Floats]:
        return by_depth(table, curve.quantity, curve.variant.name, layer)

    def findings(table: pd.DataFrame) -> list[Finding]:
        return [judge(curve.name, exponent(*values(table, curve)), curve.band) for curve in curves]

    def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
        """Draw seeds, means, fitted powers and the fans of the predicted exponents on log-log axes."""
        fig, (ax,) = plots.figure()
        for place, curve in enumerate(curves):
            depths, y = values(table, curve)
            if curve.band is not None:
                plots.power_band(ax, depths, y, curve.band)
            plots.power_fit(ax, depths, y, curve.color)
            beside = np.exp(0.03 * (place - (len(curves) - 1) / 2))  # horizontal shift so that no point hides another
            plots.points(ax, depths * beside, y, curve.color, curve.marker)
        plots.depth_axis(ax, values(table, curves[0])[0])
        plots.log_y(ax)
        ax.set_ylabel(ylabel)
        handles: list[Artist] = [plots.line_handle(c.label, c.color, c.marker) for c in curves]
        handles += [plots.seed_point_handle(), plots.interval_handle("fit")]
        if any(curve.band is not None for curve in curves):
            handles.append(plots.band_handle("predicted"))
        return plots.finish(fig, prediction, found, handles)

    return Reproduction(0, source, prediction, needs, findings, draw)
