"""Small changes of the weights are amplified in proportion to depth by post-norm, and hardly by pre-norm.

Source: Liu et al., arXiv:2004.08249, section 4, theorem 2 and what follows it: when every weight is perturbed
independently, the variance of the change of a transformer's output grows as L in post-norm and as ln L in pre-norm.

Computed: the mean square of the change of the logits when every matrix of the blocks gets independent noise of 1 % of
the standard deviation that it was drawn with, at each depth; per seed the least-squares slope of its logarithm against
ln L. Admin itself, with its profiled omegas, is measured beside them, without a verdict.

Band: 0.8 to 1.5 for post-norm, whose growth is a power, and at most 0.6 for pre-norm. Over these depths ln L itself has
an exponent of 0.33; four depths cannot tell ln L from a small power, so pre-norm's band says only that the growth is
slow. Verdict: supported when the whole 95 % t interval over seeds lies in the band, not supported when it lies wholly
outside, inconclusive otherwise.

Why twenty seeds: post-norm's single slopes scatter widely, from below 1 to 2, since some initializations
amplify any change far more than others. Five leave a half-width of about 0.6, more than that of the band.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import POST, PRE, Need, Reproduction, Setting, Variant
from normstudy.reproductions.verdicts import Band, Finding, by_depth, exponent, judge

PREDICTION = "Squared output change under noise in the weights: as L in post, ln L in pre."
ADMIN = Variant("admin")
POST_BAND, PRE_BAND = Band(0.8, 1.5), Band(high=0.6)


def needs(setting: Setting) -> list[Need]:
    return [Need("noise", variant, setting.depths, setting.many_seeds) for variant in (POST, PRE, ADMIN)]


def findings(table: pd.DataFrame) -> list[Finding]:
    post, pre, admin = (exponent(*by_depth(table, "output_change", v.name)) for v in (POST, PRE, ADMIN))
    return [
        judge("exponent in L of the squared output change, post", post, POST_BAND),
        judge("the same, pre", pre, PRE_BAND),
        judge("the same, admin", admin, None),
    ]


def draw(table: pd.DataFrame, found: list[Finding]) -> Figure:
    series = [
        plots.Series(v.name, plots.color(v.placement), *by_depth(table, "output_change", v.name), band, marker)
        for v, band, marker in ((POST, POST_BAND, "o"), (PRE, PRE_BAND, "s"), (ADMIN, None, "D"))
    ]
    return plots.scaling(PREDICTION, found, series, "mean squared change of the logits")


ENTRY = Reproduction(0, "Liu et al., Admin, arXiv:2004.08249, section 4, theorem 2", PREDICTION, needs, findings, draw)
