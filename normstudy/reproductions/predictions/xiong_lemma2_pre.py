"""Pre-norm's residual stream grows linearly with depth.

Source: Xiong et al., arXiv:2002.04745, lemma 2: in a pre-norm transformer of their simplified blocks (one head, Q = K =
0, all matrices d x d, ReLU), (1 + l/2) d <= E|x_l|^2 <= (1 + 3l/2) d for all l >= 1. Each block's MLP adds d/2 to
E|x_l|^2. Each block's attention adds between 0 and d: 0 if the tokens are unlike and cancel in the average, and d if
all tokens are equal.

Computed: for each seed and l, the variance (E|x_l|^2/d - 1)/l that a block adds on average in the deepest model.
E|x_l|^2/d is the mean of x_l^2 over tokens and dimensions.

Band: 1/2 to 3/2, for every l >= 1. The lemma is about the mean over initializations. Single seeds may therefore lie
outside the band. Verdict: supported when at every l the 95 % t interval over seeds lies in the band, not supported when
the interval lies wholly outside at one l or more, and inconclusive otherwise. The finding shows the l whose interval is
farthest outside the band or, if none is outside, closest to the band's edge.

Why twenty seeds: deep in the model, the tokens of a seed increasingly point in one direction. The stream's length then
depends on few random numbers. At the last blocks, the interval over five seeds has a half-width of about 0.25, while
the mean is only about 0.1 below the upper edge of the band (the lemma's value for equal tokens).
"""

from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import Reproduction, Variant, needing
from normstudy.reproductions.verdicts import Band, Finding, Table, by_block, judge_all

PREDICTION = "Pre-norm, simplified block: 1 + l/2 <= E|x_l|^2/d <= 1 + 3l/2 for all l."
SIMPLIFIED = Variant("pre", simplified=True)
BAND = Band(0.5, 1.5, "[0.5, 1.5]")
NEEDS = needing(("stream", SIMPLIFIED), deepest=True, many=True)


def findings(table: Table) -> list[Finding]:
    blocks, squares = by_block(table, "mean_square", SIMPLIFIED.name)
    growth = (squares[1:] - 1) / blocks[1:, None]
    return [judge_all("(E|x_l|^2/d - 1)/l for all l", "l =", blocks[1:], growth, BAND)]


def draw(table: Table, found: list[Finding]) -> Figure:
    _, squares = by_block(table, "mean_square", SIMPLIFIED.name)
    return plots.growth(PREDICTION, found, "pre, simplified block", squares, 1.0, BAND, "E|x$_l$|²/d")


ENTRY = Reproduction("Xiong et al., arXiv:2002.04745, lemma 2", PREDICTION, NEEDS, findings, draw)
