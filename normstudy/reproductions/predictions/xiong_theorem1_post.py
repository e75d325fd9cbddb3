"""Post-norm's last gradient does not fall with depth.

Source: Xiong et al., arXiv:2002.04745, theorem 1: at initialization the gradient of the last block's second MLP matrix
is at most of the order d sqrt(ln d) in a post-norm transformer, whatever the number L of blocks: the last norm brings
the stream back to unit variance, however much came before.

Computed: the L2 norm of that gradient in the real block (4 heads, GELU) at each depth; per seed the least-squares slope
of its logarithm against ln L, twenty seeds. Beside it the same of the block of the theorem's proof (one head, Q = K =
0, all matrices d x d, ReLU), as a measurement without a verdict: it tells what the simplification does.

Band: 0 +- 0.1. Verdict: supported when the whole 95 % t interval over seeds lies in the band, not supported when it
lies wholly outside, inconclusive otherwise.

Why twenty seeds: the exponent is not quite 0 but a few hundredths above, and five leave a half-width of 0.07.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import POST, Need, Reproduction, Setting, Variant
from normstudy.reproductions.verdicts import Finding, around, by_depth, exponent, judge

PREDICTION = "Post-norm: the gradient of the last block does not depend on depth."
BAND = around(0.0, 0.1)
SIMPLIFIED = Variant("post", simplified=True)


def needs(setting: Setting) -> list[Need]:
    return [Need("gradients", variant, setting.depths, setting.many_seeds) for variant in (POST, SIMPLIFIED)]


def findings(table: pd.DataFrame) -> list[Finding]:
    real = exponent(*by_depth(table, "mlp_out_grad", POST.name, "last"))
    simplified = exponent(*by_depth(table, "mlp_out_grad", SIMPLIFIED.name, "last"))
    return [
        judge("exponent in L of the last block's gradient", real, BAND),
        judge("the same, simplified block", simplified, None),
    ]


def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
    real = by_depth(table, "mlp_out_grad", POST.name, "last")
    simplified = by_depth(table, "mlp_out_grad", SIMPLIFIED.name, "last")
    series = [
        plots.Series("post", plots.color("post"), *real, BAND),
        plots.Series("post, simplified block", plots.PALE["post"], *simplified, marker="D"),
    ]
    return plots.scaling(PREDICTION, found, series, plots.LAST_GRADIENT)


ENTRY = Reproduction(0, "Xiong et al., arXiv:2002.04745, theorem 1", PREDICTION, needs, findings, draw)
