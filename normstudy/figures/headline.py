"""Draw the figure headline, a summary of a study: losses show what happens, and gradient ratios show why."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from normstudy.analysis.grid import phrase
from normstudy.figures import axes as on_axes
from normstudy.figures import curves, layout, ranking, series, style
from normstudy.figures.layers import needs_layers
from normstudy.figures.look import Look
from normstudy.figures.study import Lacks, Study, at_most_one, held

ALIKE = 0.02  # see `alike`


def headline(study: Study) -> FigureBase:
    """Draw validation loss against step on the left, and the first/last-layer gradient ratio on the right.

    If mean losses are hard to tell apart (`alike`), the left panel instead shows losses minus those of the first curve.
    If the study has a facet, each value of it gets a row: final losses on the left, ranges of ratios on the right.
    """
    needs_layers(study)
    if study.look.facet is not None:
        return _ranked(study)
    runs = at_most_one(study.at_headline(), study.panel_fields, None)
    table, which = curves.validation_table(study, runs), "validation"
    if table.empty:  # a watched training loop may log training losses only
        table, which = curves.training_table(study, runs), "training"
    last = series.last_step(runs)
    across = study.paper.fit(2)
    fig = study.paper.new(3.0 if across == 2 else 4.8)
    left, right = fig.subplots(2 // across, across)
    if alike(table, runs, study.look):
        base, difference = beside_first(table, runs, study.look)
        on_axes.draw_seed_lines(left, difference, runs, study.look, log=False)
        left.set_ylabel(f"{which} loss minus {base}'s,\nnats per token")
        layout.panel_title(left, f"What happens: the loss, minus that of {base} with the same seed")
    else:
        low, high = curves.limits([table], series.entropies(runs))
        curves.draw_losses(left, study, runs, table, labelled=True, top=high)
        left.set(ylim=(low, high), ylabel=f"{which} loss, nats per token")
        layout.panel_title(left, "What happens: the loss")
    on_axes.step_axis(left, last + 1, log=False)
    left.set_xlabel(on_axes.STEP)

    curves.draw_ratio(right, curves.ratio_table(study.modules, runs), runs, study.look)
    on_axes.step_axis(right, last, log=True)
    right.set(xlabel=on_axes.LOG_STEP, ylabel=f"ratio of {study.paper.quantity}")
    layout.panel_title(right, f"Why: {study.paper.what}, first / last layer")
    what = f"Training by {study.look.by}; thin: seeds, bold: their mean (right: geometric)"
    layout.title(fig, study, what, runs, held(study, runs) + curves.ratio_notes(study, runs))
    layout.legend(fig, study.paper, study.look, runs, layout.outcome_handles(runs, ["diverged"]))
    return fig


def alike(table: pd.DataFrame, runs: pd.DataFrame, look: Look) -> bool:
    """Return whether there are several arms, and all their mean losses are too close to tell apart on a loss axis."""
    by_step = series.seed_mean(table, runs, log=False).groupby("step")["value"].agg(["min", "max"])
    gap = (by_step["max"] - by_step["min"]).max()
    return len(look.arms(runs)) > 1 and bool(gap < ALIKE * (by_step["max"].max() - by_step["min"].min()))


def beside_first(table: pd.DataFrame, runs: pd.DataFrame, look: Look) -> tuple[str, pd.DataFrame]:
    """Return the first arm's name, and each loss minus the first arm's loss at the same seed and the same step."""
    hue, dash, first = look.arms(runs)[0]
    rows = table.assign(seed=table["run_id"].map(runs.set_index("run_id")["seed"]))
    base = rows.loc[rows["run_id"].isin(first["run_id"]), ["seed", "step", "value"]]
    both = rows.merge(base, on=["seed", "step"], suffixes=("", "_first"))
    name = ", ".join(phrase(column, text) for column, text in ((look.hue, hue), (look.dash, dash)) if column)
    return name, both.assign(value=both["value"] - both["value_first"])


def _ranked(study: Study) -> FigureBase:
    """Draw a row for each value of the facet (a text field with many values), ranked by `rank` at the largest depth."""
    order = ranking.rank(study, deepest=True)
    across = study.paper.fit(2)
    fig = study.paper.new(ranking.height(order) * (2 // across))
    left, right = fig.subplots(2 // across, across, sharey=True)
    ranking.draw_ranking(left, order, order.columns[-1], ranking.loss_axis([left], order))
    left.set_title("What happens: the loss", loc="left", pad=14)
    ranking.stripe_rows(right, order)
    draw_span(right, study, order)
    right.set_title(f"Why: {study.paper.what}, first / last layer", loc="left", pad=14)
    right.set_xlabel(f"ratio of {study.paper.quantity} (○ first step, ● last step)")

    what = f"Training by {order.field}, the lowest loss on top; left: seeds, mean and 95 % t interval; "
    what += "right: geometric mean while all seeds last, line: its range over the steps"
    ranking.finish(fig, study, order, what, curves.without_ratio(study, order.runs))
    return fig


def draw_span(ax: Axes, study: Study, order: ranking.Ranking) -> None:
    """Average the ratio over seeds at each step. Per row and color, draw a line from the lowest to the highest mean."""
    ax.axvline(1, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid="reference:equal")
    runs = order.runs.assign(hue=order.runs["row"], dash=order.runs["arm"])
    mean = series.seed_mean(curves.ratio_table(study.modules, runs), runs, log=True)
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
