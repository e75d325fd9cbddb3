"""The study in one figure: the loss says what happened, the gradient ratio why."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstudy.figures import layout, style
from normstudy.figures.gradient_profile import needs_layers
from normstudy.figures.gradient_ratio import draw_ratio, ratio_table, without_ratio
from normstudy.figures.loss_curves import draw_losses, ends_table, limits, validation_table
from normstudy.figures.ranking import (
    Ranking,
    draw_ranking,
    head,
    height,
    loss_axis,
    places,
    rank,
    rank_legend,
    rank_notes,
    stripe_rows,
)
from normstudy.figures.study import MODULE, Lacks, Study, arms, at_most_one, held


def headline(study: Study) -> Figure:
    """Validation loss beside the first/last-layer gradient ratio, at one setting; with a facet a row per value."""
    needs_layers(study)
    if study.look.facet is not None:
        return _ranked(study)
    runs = at_most_one(study, study.at_headline())
    sizes = layout.sizes(arms(runs, study))
    references = layout.entropies(runs)
    table = validation_table(study, runs)
    low, high = limits([table], references)
    last = layout.last_step(runs)

    fig = Figure(figsize=(style.TWO_COLUMNS, 3.0), layout="constrained")
    left, right = fig.subplots(1, 2)
    draw_losses(left, table, ends_table(study, runs), sizes, study.look, references, labelled=True, top=high)
    left.set_ylim(low, high)
    layout.step_axis(left, last + 1, log=False)
    left.set(xlabel="step", ylabel="validation loss, nats per token")
    left.set_title("What happens: the loss", loc="left")

    draw_ratio(right, ratio_table(study.modules, runs), runs, sizes, study.look)
    layout.step_axis(right, last, log=True)
    right.set(xlabel="step, log of step + 1", ylabel="ratio of grad_norm")
    right.set_title(f"Why: gradient norm of {MODULE}, first / last layer", loc="left")
    notes = held(study, runs) + without_ratio(study, runs)
    if study.look.dash == "warmup_steps" and (runs["warmup_steps"] > 0).any():
        notes.append("vertical line: end of the warmup")
    what = f"Training by {study.look.by}; thin: seeds, bold: their mean (right: geometric)"
    layout.title(fig, study, what, runs, notes)
    extra = [layout.outcome_handle("diverged")] if (runs["outcome"] == "diverged").any() else []
    layout.legend(fig, study.look, runs, extra)
    return fig


def _ranked(study: Study) -> Figure:
    """The facet's values by rank at the largest depth: where they end, and the ratio's first, last and extreme."""
    order = rank(study, deepest=True)
    fig = Figure(figsize=(style.TWO_COLUMNS, height(order)), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    edge = loss_axis([left], order)
    stripe_rows(left, order)
    draw_ranking(left, order, order.columns[-1], edge)
    head(left, order, order.columns[-1])
    left.set_title("What happens: the loss", loc="left", pad=14)
    stripe_rows(right, order)
    draw_span(right, study, order)
    right.set_title(f"Why: {MODULE} gradient, first / last layer", loc="left", pad=14)
    right.set_xlabel("ratio of grad_norm (○ first step, ● last step)")

    notes = [*rank_notes(order), *without_ratio(study, order.runs)]
    what = (
        f"Training by {order.field}, the lowest loss on top; left: seeds, mean and 95 % t interval; right: geometric "
        "mean while all seeds last, line: its range over the steps"
    )
    layout.title(fig, study, what, order.runs, notes)
    rank_legend(fig, order)
    return fig


def draw_span(ax: Axes, study: Study, order: Ranking) -> None:
    """In each arm's place the ratio's geometric mean over seeds: a line from least to greatest, both ends marked."""
    ax.axvline(1, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid="reference:equal")
    runs = order.runs.assign(hue=order.runs["row"], dash=order.runs["arm"])
    sizes = {(row, arm): int(((runs["row"] == row) & (runs["arm"] == arm)).sum()) for row, arm in places(order)}
    mean = layout.seed_mean(ratio_table(study.modules, runs), sizes, log=True)
    if mean.empty:
        raise Lacks("no ratio of two layers is finite and above zero in every seed")
    for (row, arm), y in places(order).items():
        value = mean[(mean["hue"] == row) & (mean["dash"] == arm)].sort_values("step")["value"].to_numpy(np.float64)
        if not len(value):
            continue
        color, name = order.colors[arm], f"{row}:{arm}"
        ax.plot([value.min(), value.max()], [y, y], color=color, lw=1.1, zorder=2, gid=f"span:{name}")
        ax.plot([value[0]], [y], marker="o", ms=4, color=color, mfc="white", zorder=3, gid=f"first:{name}")
        ax.plot([value[-1]], [y], marker="o", ms=4, color=color, zorder=3, gid=f"last:{name}")
    ax.set_xscale("log")
    layout.norm_ticks(ax.xaxis)
