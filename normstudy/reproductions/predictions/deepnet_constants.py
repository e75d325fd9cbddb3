"""DeepNet multiplies the residual stream of a decoder by alpha, and scales certain initial matrices by beta.

Source: Wang et al., arXiv:2203.00555, table 2, decoder only: x <- norm(alpha x + f(x)) with alpha = (2L)^(1/4), and
xavier initialization with gain beta = (8L)^(-1/4) for the MLP's matrices, the values and the output projection, and
gain 1 for queries and keys.

Computed: alpha and the gains of a model that is built and initialized as for training, at each depth and in every block
(see `constants` in measure.py). The paper does not mention the embeddings, the positions and the output matrix. Their
gain is assumed to be 1.

Band: exact. Verdict: supported when no number's relative deviation from the paper's number exceeds 1e-6, the rounding
of float32, and not supported otherwise. There is no interval.
"""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from normstudy.figures import axes as on_axes
from normstudy.figures import style
from normstudy.reproductions import plots
from normstudy.reproductions.entry import Need, Reproduction, Sizes, Variant
from normstudy.reproductions.verdicts import Finding, Floats, Table, by_depth, judge_exact

PREDICTION = "Decoder only: alpha = (2L)^(1/4), beta = (8L)^(-1/4), and beta scales V, O and the MLP's matrices."
DEEPNORM = Variant("deepnorm")
TOLERANCE = 1e-6
SCALED = ("v", "out", "w1", "w2")
UNSCALED = ("q", "k", "embed", "pos", "unembed")
LAWS: dict[str, Callable[[Floats], Floats]] = {"alpha": lambda L: (2 * L) ** 0.25, "beta": lambda L: (8 * L) ** -0.25}


def needs(sizes: Sizes) -> list[Need]:
    return [Need("constants", DEEPNORM, sizes.depths, 1)]


def findings(table: Table) -> list[Finding]:
    found = []
    for label, quantities, law in (
        ("alpha", ("alpha",), LAWS["alpha"]),
        ("beta of V, O and the MLP's matrices", [f"gain_{m}" for m in SCALED], LAWS["beta"]),
        ("gain 1 of all other matrices", [f"gain_{m}" for m in UNSCALED], np.ones_like),
    ):
        depths, values = table.loc[table["quantity"].isin(quantities), ["depth", "value"]].to_numpy(np.float64).T
        found.append(judge_exact(label, values, law(depths), TOLERANCE, table["seed"].nunique()))
    return found


def draw(table: Table, found: list[Finding]) -> Figure:
    depths, _ = by_depth(table, "alpha", DEEPNORM.name)
    fig, (left, right) = plots.figure(2, height=2.2)
    grid = np.exp(np.linspace(np.log(depths[0]), np.log(depths[-1]), 51))
    color, other = plots.COLORS["deepnorm"], plots.PALE["deepnorm"]
    for law, quantity, c, marker in (("alpha", "alpha", color, "o"), ("beta", "gain_w2", other, "s")):
        _, values = by_depth(table, quantity, DEEPNORM.name)
        left.plot(grid, LAWS[law](grid), color=style.GREY, lw=0.8, zorder=1)
        left.plot(depths, values[:, 0], ls="none", marker=marker, color=c, ms=5, mec="white", mew=0.6)
    plots.log_x(left, depths)
    on_axes.norm_axis(left)
    left.set_ylabel("alpha, beta")

    names, depth = (*SCALED, *UNSCALED), int(depths[-1])
    for place, name in enumerate(names):
        gains = table.loc[(table["quantity"] == f"gain_{name}") & (table["depth"] == depth), "value"]
        right.plot(np.full(len(gains), place), gains, ls="none", marker="s", color=other, ms=5, mec="white", mew=0.6)
    right.axhline(float(LAWS["beta"](depths)[-1]), color=style.GREY, lw=0.8, zorder=1)
    right.axhline(1.0, color=style.GREY, lw=0.8, ls=style.DASHES[2], zorder=1)
    right.set_xticks(range(len(names)), [{"out": "O", "q": "Q", "k": "K", "v": "V"}.get(n, n) for n in names])
    right.tick_params(axis="x", labelrotation=45)
    right.set_ylim(0, 1.1)
    right.set_ylabel(f"gain over xavier,\nall blocks of L = {depth}")
    handles = [
        plots.point_handle("alpha, measured", color, "o"),
        plots.point_handle("gain, measured", other, "s"),
        plots.line_handle("the paper's alpha, beta", style.GREY, ""),
        plots.line_handle("gain 1", style.GREY, "", style.DASHES[2]),
    ]
    return plots.finish(fig, PREDICTION, found, handles)


ENTRY = Reproduction("Wang et al., DeepNet, arXiv:2203.00555, table 2", PREDICTION, needs, findings, draw)
