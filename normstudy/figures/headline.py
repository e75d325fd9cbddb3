"""Draw the figure headline, a summary of a study: the loss shows what happens, and the gradient ratio shows why."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstudy.figures import axes as on_axes
from normstudy.figures import layout, ranking, series, style
from normstudy.figures.gradient_profile import needs_layers
from normstudy.figures.gradient_ratio import draw_ratio, ratio_notes, ratio_table, without_ratio
from normstudy.figures.loss_curves import draw_losses, limits, validation_table
from normstudy.figures.study import MODULE, Lacks, Study, at_most_one, held


def headline(study: Study) -> Figure:
    """Draw validation loss against step on the left, and the first/last-layer gradient ratio on the right.

    If the study has a facet (a text field with too many values for colors), draw a row for each value of the facet
    instead: final losses on the left, and the range of ratios on the right.
    """
    needs_layers(study)
    if study.look.facet is not None:
        return _ranked(study)
    runs = at_most_one(study, study.at_headline())
    table = validation_table(study, runs)
    low, high = limits([table], series.entropies(runs))
    last = series.last_step(runs)

    fig = Figure(figsize=(style.TWO_COLUMNS, 3.0), layout="constrained")
    left, right = fig.subplots(1, 2)
    draw_losses(left, study, runs, table, labelled=True, top=high)
    left.set_ylim(low, high)
    on_axes.step_axis(left, last + 1, log=False)
    left.set(xlabel=on_axes.STEP, ylabel="validation loss, nats per token")
    left.set_title("What happens: the loss", loc="left")

    draw_ratio(right, ratio_table(study.modules, runs), runs, study.look)
    on_axes.step_axis(right, last, log=True)
    right.set(xlabel=on_axes.LOG_STEP, ylabel="ratio of grad_norm")
    right.set_title(f"Why: gradient norm of {MODULE}, first / last layer", loc="left")
    what = f"Training by {study.look.by}; thin: seeds, bold: their mean (right: geometric)"
    layout.title(fig, study, what, runs, held(study, runs) + ratio_notes(study, runs))
    layout.legend(fig, study.look, runs, layout.outcome_handles(runs, ["diverged"]))
    return fig


def _ranked(study: Study) -> Figure:
    """Draw a row for each value of the facet (a text field with many values), ranked by loss at the largest depth."""
    order = ranking.rank(study, deepest=True)
    fig = Figure(figsize=(style.TWO_COLUMNS, ranking.height(order)), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    edge = ranking.loss_axis([left], order)
    ranking.draw_ranking(left, order, order.columns[-1], edge)
    left.set_title("What happens: the loss", loc="left", pad=14)
    ranking.stripe_rows(right, order)
    draw_span(right, study, order)
    right.set_title(f"Why: {MODULE} gradient, first / last layer", loc="left", pad=14)
    right.set_xlabel("ratio of grad_norm (○ first step, ● last step)")

    notes = [*ranking.rank_notes(order), *without_ratio(study, order.runs)]
    what = (
        f"Training by {order.field}, the lowest loss on top; left: seeds, mean and 95 % t interval; right: geometric "
        "mean while all seeds last, line: its range over the steps"
    )
    layout.title(fig, study, what, order.runs, notes)
    ranking.rank_legend(fig, order)
    return fig


def draw_span(ax: Axes, study: Study, order: ranking.Ranking) -> None:
    """For each row and color, average the ratio over seeds at each step, and draw a line over the averages' range.

    An empty circle marks the first step's average, and a filled circle marks the last step's average.
    """
    ax.axvline(1, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid="reference:equal")
    runs = order.runs.assign(hue=order.runs["row"], dash=order.runs["arm"])
    mean = series.seed_mean(ratio_table(study.modules, runs), runs, log=True)
    if mean.empty:
        raise Lacks("no first/last-layer gradient ratio is finite and above zero in every seed")
    for (row, arm), y in ranking.places(order).items():
        value = mean[(mean["hue"] == row) & (mean["dash"] == arm)].sort_values("step")["value"].to_numpy(np.float64)
        if not len(value):
            continue
        color, name = order.colors[arm], f"{row}:{arm}"
        ax.plot([value.min(), value.max()], [y, y], color=color, lw=1.1, zorder=2, gid=f"span:{name}")
        ax.plot([value[0]], [y], marker="o", ms=4, color=color, mfc="white", zorder=3, gid=f"first:{name}")
        ax.plot([value[-1]], [y], marker="o", ms=4, color=color, zorder=3, gid=f"last:{name}")
    ax.set_xscale("log")
    on_axes.norm_ticks(ax.xaxis)
