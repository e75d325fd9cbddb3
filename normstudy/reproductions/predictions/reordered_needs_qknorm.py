"""OLMo 2's reordered norm needs QK-norm, or a small initialization.

Source: OLMo 2, arXiv:2501.00656, section 3. OLMo 2 places the norm after the sublayer and adds QK-norm. The paper
predicts no number. The sublayers read the stream without a norm. Queries and keys therefore grow with the stream, and
attention scores grow with the stream's variance. Then softmax saturates, and the gradient explodes over depth. QK-norm
removes this growth. With a small initialization, the attention scores are small from the start.

Computed: at each depth, the L2 norm of the gradient of the first block's second MLP matrix, divided by the norm for the
last block. Three models are compared: xavier initialization without QK-norm, xavier initialization with QK-norm, and
init `normal` (standard deviation 0.02) without QK-norm. A finding is the ratio's geometric mean over seeds at the
largest L.

Band: none. The numbers are measured, without a verdict.
"""

from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import Reproduction, Variant, needing
from normstudy.reproductions.verdicts import Finding, Table, first_to_last, judge, log

PREDICTION = "Reordered norm: without QK-norm or a small init the gradient explodes."
LOOKS = {  # model -> label, color and marker in the figure
    Variant("reordered", qk_norm="none"): ("neither", "black", "o"),
    Variant("reordered"): ("QK-norm", plots.COLORS["reordered"], "s"),
    Variant("reordered", init="normal", qk_norm="none"): ("init normal", plots.PALE["reordered"], "D"),
}
NEEDS = needing(*(("gradients", variant) for variant in LOOKS))


def findings(table: Table) -> list[Finding]:
    found = []
    for variant, (label, _, _) in LOOKS.items():
        depths, ratios = first_to_last(table, variant.name)
        found.append(judge(f"first/last gradient, L = {depths[-1]:g}, {label}", log(ratios[-1]), None, logs=True))
    return found


def draw(table: Table, found: list[Finding]) -> Figure:
    fig, (ax,) = plots.figure()
    return plots.finish(fig, PREDICTION, found, [*plots.ratios(ax, table, LOOKS), plots.seed_point_handle()])


ENTRY = Reproduction("OLMo 2, arXiv:2501.00656, section 3", PREDICTION, NEEDS, findings, draw)
