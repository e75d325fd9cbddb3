"""The gradient of post-norm's last block does not grow with depth.

Source: Xiong et al., arXiv:2002.04745, theorem 1: at initialization the gradient of the last block's second MLP matrix
is at most of the order d sqrt(ln d) in a post-norm transformer. The number L of blocks does not matter, because the
last norm restores unit variance.

Computed: the gradient's L2 norm in the real block (4 heads, GELU) at each depth. The result for each seed is the
least-squares slope of the L2 norm's logarithm against ln L. The simplified block of the theorem's proof (one head, Q =
K = 0, all matrices d x d, ReLU) is computed to show the effect of the simplification, and has no band.

Band: at most 0.1. The theorem bounds the gradient from above, so the gradient's exponent is at most 0 in the limit of
large L. For four depths of at most 64, this project's tolerance is 0.1. Verdict: by the rule in verdicts.py.

Why twenty seeds: the exponent is a few hundredths above 0. With five seeds the interval's half-width would be 0.07, so
the interval could reach beyond 0.1.
"""

from normstudy.reproductions.entry import POST, Variant
from normstudy.reproductions.scaling import Curve, entry
from normstudy.reproductions.verdicts import Band

SIMPLIFIED = Variant("post", simplified=True)
ENTRY = entry(
    "Xiong et al., arXiv:2002.04745, theorem 1",
    "Post-norm: the gradient of the last block does not depend on depth.",
    [
        Curve("exponent in L of the last block's gradient", "post", POST, band=Band(high=0.1, source="<= 0")),
        Curve("the same, simplified block", "post, simplified block", SIMPLIFIED, marker="D", pale=True),
    ],
    many_seeds=True,
)
