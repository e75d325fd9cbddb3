"""RMSNorm and LayerNorm give pre-norm the same gradients at initialization.

Source: Zhang & Sennrich, arXiv:1910.07467, section 4: LayerNorm works by re-scaling, and re-centering can be left out.
At initialization the mean of x over its d dimensions is of the order sqrt(Var(x)/d). The two norms therefore divide by
numbers that differ by about 1/d = 1 %. This project predicts that pre-norm's gradients agree within 5 %.

Computed: the L2 norm of the gradient of each block's second MLP matrix, with RMSNorm and with LayerNorm. The result is
the difference in percent. The two pre-norm models have the same seed and L = 16 (the second depth). Post-norm is
measured too, at L = 16 and at the deepest L.

Band: -5 % to 5 % in every block, this project's tolerance. Verdict: supported when in every block the 95 % t interval
over seeds lies in the band, not supported when the interval lies wholly outside in one block or more, and inconclusive
otherwise. The finding shows the block whose interval is farthest outside the band or, if none is outside, closest to
the band's edge. Post-norm has no band. Post-norm's finding shows the block whose mean is farthest from 0. Post-norm's
differences are much larger, because a small change of the stream persists in all later blocks. Post-norm's findings
vary much between sets of seeds, because a finding is the largest of many scattered means.

Why twenty seeds: with a single seed, the two norms' gradients differ by up to 8 % in some block, with either sign. With
five seeds the interval's half-width is about 5 % around means of 1 or 2 %.
"""

import numpy as np
from matplotlib.figure import Figure

from normstudy.reproductions import plots
from normstudy.reproductions.entry import POST, PRE, Need, Reproduction, Sizes, Variant
from normstudy.reproductions.verdicts import Band, Finding, Floats, Table, by_block, deepest, judge, judge_all

PREDICTION = "Pre-norm: gradients under RMSNorm and LayerNorm differ by at most 5 % in every block."
PRE_RMS, POST_RMS = Variant("pre", norm="rmsnorm"), Variant("post", norm="rmsnorm")
BAND = Band(-5.0, 5.0, "about 0")  # difference in %


def needs(sizes: Sizes) -> list[Need]:
    near, both = (sizes.depths[1],), (sizes.depths[1], sizes.depths[-1])
    models = ((PRE, near), (PRE_RMS, near), (POST, both), (POST_RMS, both))
    return [Need("gradients", variant, depths, sizes.many_seeds) for variant, depths in models]


def difference(table: Table, variant: Variant, other: Variant, depth: int) -> tuple[Floats, Floats]:
    """Return the block numbers (n,), and by how many percent the gradient norm (n, seeds) of `other` is larger."""
    blocks, base = by_block(table, "mlp_out_grad", variant.name, depth)
    return blocks, 100 * (by_block(table, "mlp_out_grad", other.name, depth)[1] / base - 1)


def findings(table: Table) -> list[Finding]:
    depth = deepest(table, PRE.name)
    found = [judge_all(f"difference in %, pre, L = {depth}", "block", *difference(table, PRE, PRE_RMS, depth), BAND)]
    for at in sorted({depth, deepest(table, POST.name)}):
        blocks, percents = difference(table, POST, POST_RMS, at)
        worst = int(np.argmax(np.abs(percents.mean(1))))
        found.append(judge(f"the same, post, L = {at}, largest in block {blocks[worst]:g}", percents[worst], None))
    return found


def draw(table: Table, found: list[Finding]) -> Figure:
    near, far = deepest(table, PRE.name), deepest(table, POST.name)
    fig, axes = plots.figure(3, height=2.2)
    panels = ((PRE, PRE_RMS, near), (POST, POST_RMS, near), (POST, POST_RMS, far))
    for ax, (base, other, depth) in zip(axes, panels, strict=True):
        blocks, percents = difference(table, base, other, depth)
        plots.interval(ax, blocks, percents, plots.COLORS[base.placement])
        plots.lines(ax, blocks, percents, plots.COLORS[base.placement], geometric=False)
        plots.block_axis(ax, blocks)
        ax.set_title(f"{base.placement}, L = {depth}")
    axes[0].axhspan(BAND.low, BAND.high, color=plots.BAND_COLOR, lw=0, zorder=0)
    axes[0].set_ylabel("gradient under RMSNorm relative\nto LayerNorm, difference in %")
    return plots.finish_lines(fig, PREDICTION, found, {name: plots.COLORS[name] for name in ("pre", "post")}, "mean")


ENTRY = Reproduction(
    "Zhang & Sennrich, arXiv:1910.07467, section 4; the project's claim C4", PREDICTION, needs, findings, draw
)
