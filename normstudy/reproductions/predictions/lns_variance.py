"""With LayerNorm scaling the residual stream's variance grows more slowly than a small power of the block's index.

Source: Sun et al., arXiv:2502.05795, section 4: dividing the output of the norms in block l by sqrt(l) slows the growth
of the variance with depth, which is at least linear in pre-norm. At initialization block l adds a variance of about
1/l, so the variance grows as a logarithm.

Computed: the mean of x_l^2 over tokens and dimensions in the deepest model; per seed the least-squares slope of the
mean's logarithm against ln l, l from 1. Pre-norm's slope is measured for contrast, without a verdict.

Band: at most 0.35. Over 64 blocks, growth as 1 + c ln l has an exponent of 0.23 to 0.36 for c from 0.5 to 1.5; linear
growth has an exponent of about 1. Verdict: supported when the 95 % t interval over seeds lies in the band, not
supported when it lies outside, inconclusive otherwise.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import PRE, Need, Reproduction, Sizes, Variant
from normstudy.reproductions.verdicts import Band, Finding, Floats, exponent, in_deepest, judge

PREDICTION = "LayerNorm scaling: the stream's variance grows no faster than l^0.35."
LNS = Variant("lns")
BAND = Band(high=0.35)


def needs(sizes: Sizes) -> list[Need]:
    return [
        Need("stream", LNS, (sizes.deepest,), sizes.seeds),
        Need("gradients", PRE, (sizes.deepest,), sizes.seeds),  # includes the stream, and is shared with other entries
    ]


def stream(table: pd.DataFrame, variant: Variant) -> tuple[Floats, Floats]:
    """Return the block numbers from 1 (n,) and the stream's mean square after each block (n, seeds)."""
    layers, squares = in_deepest(table, "mean_square", variant.name)
    return layers[1:], squares[1:]


def findings(table: pd.DataFrame) -> list[Finding]:
    return [
        judge("exponent in l of the stream's variance, lns", exponent(*stream(table, LNS)), BAND),
        judge("the same, pre", exponent(*stream(table, PRE)), None),
    ]


def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
    fig, (ax,) = plots.figure()
    plots.power_band(ax, *stream(table, LNS), BAND, anchor="first")
    for variant in (LNS, PRE):
        color = plots.color(variant.placement)
        plots.power_fit(ax, *stream(table, variant), color)
        plots.lines(ax, *stream(table, variant), color, geometric=True)
    plots.log_x(ax, len(stream(table, LNS)[0]))
    plots.log_y(ax)
    ax.set_xlabel("block l")
    ax.set_ylabel(plots.MEAN_SQUARE)
    return plots.finish_lines(fig, PREDICTION, found, {name: plots.color(name) for name in ("lns", "pre")}, "fit")


ENTRY = Reproduction(
    0, "Sun et al., The Curse of Depth, arXiv:2502.05795, section 4", PREDICTION, needs, findings, draw
)
