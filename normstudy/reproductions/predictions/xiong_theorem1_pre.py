"""Pre-norm's last gradient falls as the root of the depth.

Source: Xiong et al., arXiv:2002.04745, theorem 1: at initialization the gradient of the last block's second MLP matrix
is at most of the order d sqrt(ln d / L) in a pre-norm transformer of L blocks. Each block adds about the same variance
to the residual stream, so the final norm divides what reaches the last block by a number that grows as sqrt(L).

Computed: the L2 norm of that gradient in the real block (4 heads, GELU) at each depth; per seed the least-squares slope
of its logarithm against ln L. Twenty seeds, since five leave a half-width of 0.07 against a band of 0.1.

Band: -0.5 +- 0.1, the exponent of the bound taken for that of the gradient. Verdict: supported when the whole 95 % t
interval over seeds lies in the band, not supported when it lies wholly outside, inconclusive otherwise.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import PRE, Need, Reproduction, Setting
from normstudy.reproductions.verdicts import Finding, around, by_depth, exponent, judge

PREDICTION = "Pre-norm: the gradient of the last block falls with depth as 1/sqrt(L)."
BAND = around(-0.5, 0.1)


def needs(setting: Setting) -> list[Need]:
    return [Need("gradients", PRE, setting.depths, setting.many_seeds)]


def findings(table: pd.DataFrame) -> list[Finding]:
    depths, grads = by_depth(table, "mlp_out_grad", PRE.name, "last")
    return [judge("exponent in L of the last block's gradient", exponent(depths, grads), BAND)]


def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
    depths, grads = by_depth(table, "mlp_out_grad", PRE.name, "last")
    series = [plots.Series("pre", plots.color("pre"), depths, grads, BAND)]
    return plots.scaling(PREDICTION, found, series, plots.LAST_GRADIENT)


ENTRY = Reproduction(0, "Xiong et al., arXiv:2002.04745, theorem 1", PREDICTION, needs, findings, draw)
