"""One update changes the output of a DeepNet by an amount that does not depend on its depth.

Source: Wang et al., arXiv:2203.00555, section 4 and theorem 4.2: with alpha and beta as chosen there, the change of the
model's output after one SGD step is of the order of the rate, whatever the number of blocks.

Computed: the root mean square of the change of the logits, on the batch that the gradient was taken on, after one SGD
step of rate 0.01 on all parameters but the norms'; per seed the least-squares slope of its logarithm against ln L. The
same with the norms trained too is measured beside it, without a verdict.

Band: 0 +- 0.15. Verdict: supported when the whole 95 % t interval over seeds lies in the band, not supported when it
lies wholly outside, inconclusive otherwise.

Why the norms matter: the theorem counts the matrices of the sublayers, whose gradients and effect beta makes small.
Neither alpha nor beta touches the norms' gains and biases: the gradient of each is of the same size at any depth, each
moves the output by as much, all in the direction of the loss's descent, and there are 2L of them. So with the norms
trained the change grows nearly as L.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import Need, Reproduction, Setting, Variant
from normstudy.reproductions.verdicts import Finding, around, by_depth, exponent, judge

PREDICTION = "Deepnorm: the output change after one SGD step does not depend on depth."
DEEPNORM = Variant("deepnorm")
BAND = around(0.0, 0.15)


def needs(setting: Setting) -> list[Need]:
    return [Need("update", DEEPNORM, setting.depths, setting.seeds)]


def findings(table: pd.DataFrame) -> list[Finding]:
    frozen, trained = (exponent(*by_depth(table, q, DEEPNORM.name)) for q in ("update_frozen", "update_trained"))
    return [
        judge("exponent in L of the output change, norms frozen", frozen, BAND),
        judge("the same, norms trained", trained, None),
    ]


def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
    frozen, trained = (by_depth(table, q, DEEPNORM.name) for q in ("update_frozen", "update_trained"))
    series = [
        plots.Series("deepnorm, norms frozen", plots.color("deepnorm"), *frozen, BAND),
        plots.Series("deepnorm, norms trained", plots.PALE["deepnorm"], *trained, marker="D"),
    ]
    return plots.scaling(PREDICTION, found, series, "change of the logits after one\nstep, root mean square")


ENTRY = Reproduction(0, "Wang et al., DeepNet, arXiv:2203.00555, theorem 4.2", PREDICTION, needs, findings, draw)
