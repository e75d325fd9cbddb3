"""With LayerNorm scaling, the variance of the residual stream grows only slowly from block to block.

Source: Sun et al., arXiv:2502.05795, section 4: in pre-norm the variance grows at least linearly with depth. Dividing
the output of the norms in block l by sqrt(l) slows this growth. At initialization, block l then adds a variance of
about 1/l, and the variance grows as the logarithm of l.

Computed: the mean of x_l^2 over tokens and dimensions in the deepest model. The result for each seed is the
least-squares slope of the mean's logarithm against ln l, for l >= 1. Pre-norm is computed for contrast, and has no
band.

Band: at most 0.35, this project's tolerance. Over 64 blocks, growth as 1 + c ln l has an exponent of 0.23 for c = 0.5
and 0.36 for c = 1.5. Linear growth has an exponent of about 1. Verdict: by the rule in verdicts.py.
"""

from normstudy.reproductions import plots
from normstudy.reproductions.entry import PRE, Variant
from normstudy.reproductions.scaling import Curve, entry
from normstudy.reproductions.verdicts import Band

ENTRY = entry(
    "Sun et al., The Curse of Depth, arXiv:2502.05795, section 4",
    "LayerNorm scaling: the stream's variance grows no faster than l^0.35.",
    [
        Curve(
            "exponent in l of the stream's variance, lns", "lns", Variant("lns"), ("stream", "mean_square"),
            Band(high=0.35, source="ln l"),
        ),
        Curve("the same, pre", "pre", PRE, ("gradients", "mean_square")),  # other predictions measure this, too
    ],
    over_blocks=True,
    ylabel=plots.MEAN_SQUARE,
    anchor="first",
)  # fmt: skip
