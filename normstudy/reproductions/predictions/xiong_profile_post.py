"""Post-norm's gradient should shrink by a constant factor per block; at initialization it does not.

Source: Xiong et al., arXiv:2002.04745, section 3.3, "Extended theory to other layers/parameters": on the way down from
the last block, each norm multiplies the gradient by the size of the norm's Jacobian. This size is sqrt(2/3) if the
norm's input has a variance of 3/2 (lemmas 2 and 3). The gradient of block l is then (2/3)^((L - l)/2) times the last
block's gradient.

Computed: the L2 norm of the gradient of each block's second MLP matrix in the deepest model. The result for each seed
is exp(-s), the factor per block on the way down. Here s is the least-squares slope of the gradient norm's logarithm
against the block number.

Band: (2/3)^(1/2) +- 0.03, that is 0.816 +- 0.03. Verdict: by the rule in verdicts.py.

Why it is not supported: the argument counts the norm's Jacobian but not the Jacobian of the map x + f(x) before the
norm. f is an independent random map whose output has half the variance of x. The map x + f(x) therefore multiplies both
mean squares, the stream's and the gradient's, by 3/2. For the gradient norm, the factors sqrt(2/3) and sqrt(3/2)
cancel, and the gradient is equally large in all blocks. In post-norm, gradients begin to vanish with the first
updates, not before.
"""

import numpy as np
from matplotlib.figure import Figure

from normstudy.figures import axes as on_axes
from normstudy.reproductions import plots
from normstudy.reproductions.entry import POST, Reproduction, needing
from normstudy.reproductions.verdicts import Band, Finding, Table, by_block, judge, log, slope

PREDICTION = "Post-norm: going down, the gradient shrinks by sqrt(2/3) = 0.816 a block."
BAND = Band(0.786, 0.846, "sqrt(2/3)")
NEEDS = needing(("gradients", POST), deepest=True)


def findings(table: Table) -> list[Finding]:
    blocks, grads = by_block(table, "mlp_out_grad", POST.name)
    return [judge(f"factor per block going down, L = {len(blocks)}", np.exp(-slope(blocks, log(grads))), BAND)]


def draw(table: Table, found: list[Finding]) -> Figure:
    blocks, grads = by_block(table, "mlp_out_grad", POST.name)
    fig, (ax,) = plots.figure()
    color = plots.COLORS["post"]
    last = float(np.exp(log(grads[-1]).mean()))
    below = blocks[-1] - blocks
    ax.fill_between(blocks, last * BAND.low**below, last * BAND.high**below, color=plots.BAND_COLOR, lw=0)
    middle = np.exp(log(grads).mean())
    fit = [middle * f ** (below - below.mean()) for f in (found[0].low, found[0].value, found[0].high)]
    ax.fill_between(blocks, fit[0], fit[2], color=color, alpha=0.25, lw=0, zorder=1.5)
    ax.plot(blocks, fit[1], color=color, lw=1.0, zorder=3)
    plots.lines(ax, blocks, grads, color, geometric=True)
    on_axes.norm_axis(ax)
    plots.block_axis(ax, blocks)
    ax.set_ylabel(plots.BLOCK_GRADIENT)
    return plots.finish_lines(fig, PREDICTION, found, {"post": color}, "fit")


ENTRY = Reproduction("Xiong et al., arXiv:2002.04745, section 3.3, extended theory", PREDICTION, NEEDS, findings, draw)
