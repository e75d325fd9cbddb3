"""Post-norm amplifies small weight changes in proportion to depth; pre-norm hardly amplifies them.

Source: Liu et al., arXiv:2004.08249, section 4, theorem 2 and the text after it: if every weight is perturbed
independently, the variance of the change in a transformer's output grows as L in post-norm and as ln L in pre-norm.

Computed: noise of 1 % of the matrix's standard deviation is added to every block matrix. The change is the mean square
change of the logits. The result for each seed is the least-squares slope of the change's logarithm against ln L. The
placement `admin` is computed too, and has no band.

Band: 1 for post-norm, as in the theorem, and at most 0.6 for pre-norm, this project's tolerance. Over the four depths,
ln L grows like L^0.33, and cannot be distinguished from a small power. Verdict: by the rule in verdicts.py. Post-norm's
band is one number, in which no interval can lie. Its verdict is therefore inconclusive if the interval contains 1, and
otherwise not supported.

Post-norm's exponent is above 1: over depths of 8 to 64, the change grows faster than the theorem's leading order.

Why twenty seeds: post-norm's slopes scatter from below 1 to 2, because some initializations amplify every change far
more than other initializations. With five seeds the interval's half-width is about 0.6.
"""

from normstudy.reproductions.entry import POST, PRE, Variant
from normstudy.reproductions.scaling import Curve, entry
from normstudy.reproductions.verdicts import Band

CHANGE = ("noise", "output_change")
ENTRY = entry(
    "Liu et al., Admin, arXiv:2004.08249, section 4, theorem 2",
    "Squared output change under noise in the weights: as L in post, ln L in pre.",
    [
        Curve("exponent in L of the squared output change, post", "post", POST, CHANGE, Band(1.0, 1.0, "1")),
        Curve("the same, pre", "pre", PRE, CHANGE, Band(high=0.6, source="ln L"), "s"),
        Curve("the same, admin", "admin", Variant("admin"), CHANGE, marker="D"),
    ],
    ylabel="mean squared change of the logits",
    many_seeds=True,
)
