"""The gradient of pre-norm's last block falls as 1/sqrt(L) with the depth L.

Source: Xiong et al., arXiv:2002.04745, theorem 1: at initialization the gradient of the last block's second MLP matrix
is at most of the order d sqrt(ln d / L) in a pre-norm transformer of L blocks. Each block adds about the same variance
to the residual stream. The final norm therefore divides the last block's gradient by a number that grows as sqrt(L).

Computed: the gradient's L2 norm in the real block (4 heads, GELU) at each depth. The result for each seed is the
least-squares slope of the L2 norm's logarithm against ln L. Twenty seeds are used because with five seeds the
interval's half-width is 0.07.

Band: at most -0.4. The theorem bounds the gradient from above, so the gradient's exponent is at most -0.5 in the limit
of large L. For four depths of at most 64, this project's tolerance is 0.1. Verdict: by the rule in verdicts.py.
"""

from normstudy.reproductions.entry import PRE
from normstudy.reproductions.scaling import Curve, entry
from normstudy.reproductions.verdicts import Band

ENTRY = entry(
    "Xiong et al., arXiv:2002.04745, theorem 1",
    "Pre-norm: the gradient of the last block falls with depth as 1/sqrt(L).",
    [Curve("exponent in L of the last block's gradient", "pre", PRE, band=Band(high=-0.4, source="<= -0.5"))],
    many_seeds=True,
)
