"""With GPT-2's initialization, the last block's gradient in pre-norm does not depend on depth.

Source: GPT-2 (Radford et al. 2019, section 2.3) scales the output projections by 1/sqrt(number of residual layers) at
initialization. This prediction is a control for Xiong et al., arXiv:2002.04745, theorem 1, whose exponent of -1/2 comes
from the variance that the blocks add to the residual stream. If all blocks together add the same variance at every
depth, the last block's gradient must not depend on depth. The embeddings must be small, or they outweigh the blocks.

Computed: the L2 norm of the gradient of the last block's second MLP matrix, in pre-norm with init `gpt2` and embeddings
of standard deviation 0.02. The result for each seed is the least-squares slope of the norm's logarithm against ln L.
For contrast, the slope is also computed with init `normal`, which does not scale with depth.

Band: 0 +- 0.05. The contrast's band is -0.5 +- 0.1, as in theorem 1. Verdict: by the rule in verdicts.py.
"""

from normstudy.reproductions.entry import Variant
from normstudy.reproductions.scaling import Curve, entry
from normstudy.reproductions.verdicts import around

GPT2 = Variant("pre", init="gpt2", embed_init="std")
NORMAL = Variant("pre", init="normal", embed_init="std")
ENTRY = entry(
    "GPT-2, Radford et al. 2019, section 2.3; Xiong et al., arXiv:2002.04745, theorem 1",
    "Pre-norm, GPT-2's initialization: the last gradient does not depend on depth.",
    [
        Curve("exponent in L of the last block's gradient", "pre, init gpt2", GPT2, band=around(0.0, 0.05)),
        Curve("contrast: init normal", "pre, init normal", NORMAL, band=around(-0.5, 0.1), marker="D", pale=True),
    ],
)
