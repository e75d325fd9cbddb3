"""Pre-norm's gradient falls as a power of the block's index, not exponentially.

Source: Xiong et al., arXiv:2002.04745, section 3.3, "Extended theory to other layers/parameters": in a pre-norm
transformer the stream's variance grows linearly with l. The norm before block l therefore divides the gradient of the
block's matrices by a number that grows as sqrt(l). Nothing on the residual path multiplies the gradient.

Computed: the L2 norm of the gradient of each block's second MLP matrix in the deepest model. The result for each seed
is the least-squares slope of the gradient norm's logarithm against ln l, for l >= 1.

Band: -0.5 +- 0.1. Verdict: by the rule in verdicts.py.
"""

from normstudy.reproductions import plots
from normstudy.reproductions.entry import PRE
from normstudy.reproductions.scaling import Curve, entry
from normstudy.reproductions.verdicts import around

ENTRY = entry(
    "Xiong et al., arXiv:2002.04745, section 3.3, extended theory",
    "Pre-norm: the gradient of block l falls as 1/sqrt(l).",
    [Curve("exponent in l of the gradient, L = {n}", "pre", PRE, band=around(-0.5, 0.1))],
    over_blocks=True,
    ylabel=plots.BLOCK_GRADIENT,
)
