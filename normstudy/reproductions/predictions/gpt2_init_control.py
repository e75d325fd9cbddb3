"""GPT-2's initialization takes the depth out of pre-norm's last gradient.

Source: GPT-2 (Radford et al. 2019, section 2.3) scales the output projections by 1/sqrt(number of residual layers) at
initialization; with Xiong et al., arXiv:2002.04745, theorem 1, this is a control: the exponent of -1/2 comes from the
variance that the blocks add to the residual stream. Where the sum of all blocks adds the same whatever their number,
the last gradient must not depend on depth. The embeddings must be small too, or they outweigh what the blocks add.

Computed: the L2 norm of the gradient of the last block's second MLP matrix in pre-norm with init `gpt2` and embeddings
of standard deviation 0.02; per seed the least-squares slope of its logarithm against ln L. The contrast has the same
small embeddings and init `normal`, which does not scale with depth.

Band: 0 +- 0.05, and for the contrast -0.5 +- 0.1 as in theorem 1. Verdict: supported when the whole 95 % t interval
over seeds lies in the band, not supported when it lies wholly outside, inconclusive otherwise.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import Need, Reproduction, Setting, Variant
from normstudy.reproductions.verdicts import Finding, around, by_depth, exponent, judge

PREDICTION = "Pre-norm, GPT-2's initialization: the last gradient does not depend on depth."
GPT2 = Variant("pre", init="gpt2", embed_init="std")
NORMAL = Variant("pre", init="normal", embed_init="std")
BAND, CONTRAST_BAND = around(0.0, 0.05), around(-0.5, 0.1)


def needs(setting: Setting) -> list[Need]:
    return [Need("gradients", variant, setting.depths, setting.seeds) for variant in (GPT2, NORMAL)]


def findings(table: pd.DataFrame) -> list[Finding]:
    scaled = exponent(*by_depth(table, "mlp_out_grad", GPT2.name, "last"))
    contrast = exponent(*by_depth(table, "mlp_out_grad", NORMAL.name, "last"))
    return [
        judge("exponent in L of the last block's gradient", scaled, BAND),
        judge("contrast: init normal", contrast, CONTRAST_BAND),
    ]


def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
    scaled = by_depth(table, "mlp_out_grad", GPT2.name, "last")
    contrast = by_depth(table, "mlp_out_grad", NORMAL.name, "last")
    series = [
        plots.Series("pre, init gpt2", plots.color("pre"), *scaled, BAND),
        plots.Series("pre, init normal", plots.PALE["pre"], *contrast, CONTRAST_BAND, "D"),
    ]
    return plots.scaling(PREDICTION, found, series, plots.LAST_GRADIENT)


SOURCE = "GPT-2, Radford et al. 2019, section 2.3; Xiong et al., arXiv:2002.04745, theorem 1"
ENTRY = Reproduction(0, SOURCE, PREDICTION, needs, findings, draw)
