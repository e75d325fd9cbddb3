"""Peri-norm adds a variance of 2 per block to the residual stream.

Source: Kim et al., arXiv:2502.02732, section 3: a norm after each sublayer gives the sublayer's output unit variance,
whatever the weights are. The residual stream's variance therefore grows by 1 per sublayer and by 2 per block.

Computed: the mean of x_l^2 over tokens and dimensions in the deepest model. Its first blocks equal a shallower
model, so one depth suffices. The result for each seed is the mean after the last block minus the mean at the
embeddings, divided by the number of blocks.

Band: 2 +- 0.15. Verdict: by the rule in verdicts.py. The result differs between seeds because the 2L added vectors are
not orthogonal in d = 128 dimensions, and because the directions of these vectors are similar for all tokens of a seed.
"""

from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import Reproduction, Variant, needing
from normstudy.reproductions.verdicts import Finding, Table, around, by_block, judge

PREDICTION = "Peri-norm: each block adds a variance of 2 to the residual stream."
PERI = Variant("peri")
BAND = around(2.0, 0.15)
NEEDS = needing(("stream", PERI), deepest=True)


def findings(table: Table) -> list[Finding]:
    _, squares = by_block(table, "mean_square", PERI.name)
    depth = len(squares) - 1
    return [judge(f"variance added per block, L = {depth}", (squares[-1] - squares[0]) / depth, BAND)]


def draw(table: Table, found: list[Finding]) -> Figure:
    _, squares = by_block(table, "mean_square", PERI.name)
    return plots.growth(PREDICTION, found, "peri", squares, squares[0].mean(), BAND, plots.MEAN_SQUARE)


ENTRY = Reproduction("Kim et al., Peri-LN, arXiv:2502.02732, section 3", PREDICTION, NEEDS, findings, draw)
