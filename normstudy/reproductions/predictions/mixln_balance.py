"""Mix-LN should balance the gradients of the first and the last block; at initialization it does not.

Source: Li et al., arXiv:2412.13795, section 3: with post-norm in the first quarter of the blocks and pre-norm in the
rest, the gradients of the blocks are more alike than the gradients in pre-norm.

Computed: at each depth, the L2 norm of the gradient of the first block's second MLP matrix, divided by the norm for the
last block. The result for each seed is Mix-LN's |ln ratio| minus pre-norm's |ln ratio|, averaged over the depths. A
negative result means that Mix-LN's ratio is closer to 1 on a logarithmic scale. The figure shows each depth.

Band: none, and therefore no verdict, because the paper shows gradients during training, not at initialization. Twenty
seeds are used because with five seeds the interval's half-width is 0.13.

Why the result is not negative at initialization: Mix-LN's post-norm blocks have about equally large gradients. The last
post-norm block passes a stream of unit variance to the first pre-norm block, as the embeddings do in a pre-norm model.
Over the pre-norm blocks the gradient therefore falls less, as in a pre-norm model of three quarters of the depth. But
Mix-LN's first block has a larger gradient than a pre-norm model's first block. The two effects offset each other:
Mix-LN's ratio equals pre-norm's ratio, or is a little larger.
"""

import numpy as np
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import PRE, Reproduction, Variant, needing
from normstudy.reproductions.verdicts import Finding, Floats, Table, first_to_last, judge, log

PREDICTION = "Mix-LN: the first and the last block's gradient are more alike than in pre-norm."
MIX = Variant("mix")
NEEDS = needing(("gradients", MIX), ("gradients", PRE), many=True)


def imbalance(table: Table) -> tuple[Floats, Floats]:
    """Return the depths (n,), and Mix-LN's |ln(first/last gradient norm)| minus pre-norm's, of shape (n, seeds)."""
    (depths, mix), (_, pre) = (first_to_last(table, variant.name) for variant in (MIX, PRE))
    return depths, np.abs(log(mix)) - np.abs(log(pre))


def findings(table: Table) -> list[Finding]:
    return [judge("|ln(first/last gradient)|, mix - pre, mean over L", imbalance(table)[1].mean(0), None)]


def draw(table: Table, found: list[Finding]) -> Figure:
    fig, (left, right) = plots.figure(2, height=2.2)
    looks = {MIX: ("mix", plots.COLORS["mix"], "o"), PRE: ("pre", plots.COLORS["pre"], "s")}
    handles = plots.ratios(left, table, looks)
    depths, difference = imbalance(table)
    plots.means(right, depths, difference, "black")
    right.set_ylim(bottom=min(-0.2, right.get_ylim()[0]))
    plots.log_x(right, depths)
    right.set_ylabel("|ln first/last|, mix − pre")
    handles += [plots.seed_point_handle(), plots.point_handle("mix − pre, mean, 95 % interval", "black", "o")]
    return plots.finish(fig, PREDICTION, found, handles)


ENTRY = Reproduction("Li et al., Mix-LN, arXiv:2412.13795, section 3", PREDICTION, NEEDS, findings, draw)
