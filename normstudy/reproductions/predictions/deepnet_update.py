"""The change of a DeepNet's output after one update does not depend on depth.

Source: Wang et al., arXiv:2203.00555, section 4 and theorem 4.2: with the paper's alpha and beta, the change of the
model's output after one SGD step is of the order of the learning rate, whatever the number of blocks.

Computed: one SGD step of rate 0.01 changes all parameters except the norms'. The change is the root mean square change
of the logits on the batch that gave the gradient. The result for each seed is the least-squares slope of the change's
logarithm against ln L. A step that also trains the norms is computed too, and has no band.

Band: 0 +- 0.15. Verdict: by the rule in verdicts.py.

Why the norms matter: the theorem counts only the sublayers' matrices. Beta makes their gradients and effects small. The
gains and biases of the 2L norms are scaled neither by alpha nor by beta. At any depth each norm has a gradient of the
same size and moves the output by the same amount, always in the direction that lowers the loss. With the norms trained,
the change therefore grows nearly as L.
"""

from normstudy.reproductions.entry import Variant
from normstudy.reproductions.scaling import Curve, entry
from normstudy.reproductions.verdicts import around

DEEPNORM = Variant("deepnorm")
ENTRY = entry(
    "Wang et al., DeepNet, arXiv:2203.00555, theorem 4.2",
    "Deepnorm: the output change after one SGD step does not depend on depth.",
    [
        Curve(
            "exponent in L of the output change, norms frozen", "deepnorm, norms frozen", DEEPNORM,
            ("update", "update_frozen"), around(0.0, 0.15),
        ),
        Curve(
            "the same, norms trained", "deepnorm, norms trained", DEEPNORM,
            ("update", "update_trained"), marker="D", pale=True,
        ),
    ],
    ylabel="change of the logits after one\nstep, root mean square",
)  # fmt: skip
