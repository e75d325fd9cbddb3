"""Pre-norm's gradient falls as a power of the block's index, not exponentially.

Source: Xiong et al., arXiv:2002.04745, section 3.3, "Extended theory to other layers/parameters": in a pre-norm
transformer the stream's variance grows linearly with l, so the norm before block l divides the gradient of the block's
matrices by a number that grows as sqrt(l). Nothing on the residual path multiplies the gradient.

Computed: the L2 norm of the gradient of each block's second MLP matrix in the deepest model; per seed the least-squares
slope of the norm's logarithm against ln l, l from 1.

Band: -0.5 +- 0.1. Verdict: supported when the 95 % t interval over seeds lies in the band, not supported when it lies
outside, inconclusive otherwise.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import PRE, Need, Reproduction, Sizes
from normstudy.reproductions.verdicts import Finding, around, exponent, in_deepest, judge

PREDICTION = "Pre-norm: the gradient of block l falls as 1/sqrt(l)."
BAND = around(-0.5, 0.1)


def needs(sizes: Sizes) -> list[Need]:
    return [Need("gradients", PRE, (sizes.deepest,), sizes.seeds)]


def findings(table: pd.DataFrame) -> list[Finding]:
    layers, grads = in_deepest(table, "mlp_out_grad", PRE.name)
    return [judge(f"exponent in l of the gradient, L = {len(layers)}", exponent(layers + 1, grads), BAND)]


def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
    layers, grads = in_deepest(table, "mlp_out_grad", PRE.name)
    fig, (ax,) = plots.figure()
    color = plots.color("pre")
    plots.power_band(ax, layers + 1, grads, BAND)
    plots.power_fit(ax, layers + 1, grads, color)
    plots.lines(ax, layers + 1, grads, color, geometric=True)
    plots.log_x(ax, len(layers))
    plots.log_y(ax)
    ax.set_xlabel("block l")
    ax.set_ylabel(plots.BLOCK_GRADIENT)
    return plots.finish_lines(fig, PREDICTION, found, {"pre": color}, "fit")


ENTRY = Reproduction(
    0, "Xiong et al., arXiv:2002.04745, section 3.3, extended theory", PREDICTION, needs, findings, draw
)
