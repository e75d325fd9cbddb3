"""In post-norm the input of a block's last norm has a mean square of 3/2.

Source: Xiong et al., arXiv:2002.04745, lemma 2: in a post-norm transformer of their simplified blocks (one head, Q = K
= 0, all matrices d x d, ReLU), E|x_l|^2 = 3d/2 before the last norm of every block. The block's first norm gives unit
variance, and a random ReLU layer adds one half.

Computed: the mean of x^2 over tokens and dimensions before the last norm of each block in the deepest model. Its
first blocks equal a shallower model, so one depth suffices. The result for each seed is the average over the blocks.

Band: 1.5 +- 0.05. Verdict: by the rule in verdicts.py.
"""

from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import Reproduction, Variant, needing
from normstudy.reproductions.verdicts import Finding, Table, around, by_block, judge

PREDICTION = "Post-norm, simplified block: E|x|^2/d is 3/2 before a block's last norm."
SIMPLIFIED = Variant("post", simplified=True)
BAND = around(1.5, 0.05)
NEEDS = needing(("before_norm2", SIMPLIFIED), deepest=True)


def findings(table: Table) -> list[Finding]:
    _, squares = by_block(table, "before_norm2", SIMPLIFIED.name)
    return [judge("E|x|^2/d before the last norm, mean over blocks", squares.mean(0), BAND)]


def draw(table: Table, found: list[Finding]) -> Figure:
    blocks, squares = by_block(table, "before_norm2", SIMPLIFIED.name)
    fig, (ax,) = plots.figure()
    color = plots.COLORS["post"]
    ax.axhspan(BAND.low, BAND.high, color=plots.BAND_COLOR, lw=0, zorder=0)
    plots.lines(ax, blocks, squares, color, geometric=False)
    ax.axhspan(found[0].low, found[0].high, color=color, alpha=0.25, lw=0, zorder=1.5)
    plots.block_axis(ax, blocks)
    ax.set_ylabel("E|x|²/d before the last norm")
    return plots.finish_lines(fig, PREDICTION, found, {"post, simplified block": color}, "mean")


ENTRY = Reproduction("Xiong et al., arXiv:2002.04745, lemma 2", PREDICTION, NEEDS, findings, draw)
