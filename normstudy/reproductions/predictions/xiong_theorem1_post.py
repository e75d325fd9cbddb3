"""The gradient of post-norm's last block does not fall with depth.

Source: Xiong et al., arXiv:2002.04745, theorem 1: at initialization the gradient of the last block's second MLP matrix
is at most of the order d sqrt(ln d) in a post-norm transformer. The number L of blocks does not matter, because the
last norm restores unit variance.

Computed: the gradient's L2 norm in the real block (4 heads, GELU) at each depth; for each seed, the least-squares slope
of the norm's logarithm against ln L. The simplified block of the theorem's proof (one head, Q = K = 0, all matrices d x
d, ReLU) has no band; it shows the effect of the simplification.

Band: at most 0.1. The theorem bounds the gradient from above, so its exponent is at most 0 in the limit of large L; 0.1
is this project's tolerance for four depths of at most 64. Verdict: supported when the 95 % t interval over seeds lies
in the band, not supported when it lies outside, inconclusive otherwise.

Why twenty seeds: the exponent is a few hundredths above 0, and with five seeds the interval's half-width is 0.07.
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
