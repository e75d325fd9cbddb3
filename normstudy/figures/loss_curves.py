"""Draw the figures loss_curves and training_loss: validation loss and training loss against step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.study import Lacks, Study


def validation_table(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Return all validation losses, with columns run_id, step, value, hue, dash. The final loss has step n_steps."""
    early = series.of_runs(study.losses["val_loss"], runs, ["hue", "dash"])
    final = runs.assign(step=runs["n_steps"], value=runs["final_val_loss"].astype(float))[early.columns]
    rows: pd.DataFrame = pd.concat([early, final[np.isfinite(final["value"])]])
    return rows.sort_values(["run_id", "step"], ignore_index=True)


def training_table(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Return all finite training losses, with columns run_id, step, value, hue, dash."""
    return series.of_runs(study.losses["train_loss"], runs, ["hue", "dash"])


def draw_losses(
    ax: Axes, study: Study, runs: pd.DataFrame, table: pd.DataFrame, *, labelled: bool, top: float, smooth: bool = False
) -> None:
    """Draw a panel: loss curves, reference losses, and a marker at the last finite loss of each diverged run.

    A marker is drawn at `top` if the loss is higher than `top`.
    """
    look = study.look
    on_axes.draw_references(ax, series.entropies(runs), labelled=labelled)
    on_axes.draw_seed_lines(ax, table, runs, look, log=False, smooth=smooth)
    ends = series.ends(training_table(study, runs), runs)
    ends = ends.assign(value=ends["value"].clip(upper=top))
    for run_id, hue, step, value in zip(ends["run_id"], ends["hue"], ends["step"], ends["value"], strict=True):
        last = table[(table["run_id"] == run_id) & (table["step"] < step)].tail(1)
        if len(last):  # a dotted line leads from the last evaluation to the marker
            way = [[last["step"].iloc[0], step], [last["value"].iloc[0], value]]
            ax.plot(*way, color=look.colors[hue], lw=style.THIN, ls=(0, (1, 1)), gid=f"way:{run_id}")
    on_axes.draw_ends(ax, ends, look)


def limits(tables: Sequence[pd.DataFrame], references: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Return limits of the loss axis that include all reference losses, the lowest loss, and losses at the first step.

    The first losses of a panel (one of `tables`) are ignored if one is at least twice the loss of uniform prediction.
    """
    low = min([v for _, v in references] + [float(t["value"].min()) for t in tables if len(t)], default=0.0)
    starts = [float(t.loc[t["step"] == t["step"].min(), "value"].max()) for t in tables if len(t)]
    uniform = max((v for _, v in references), default=max(starts, default=1.0))
    high = max([uniform, *(s for s in starts if s < 2 * uniform)])
    return low - 0.05 * (high - low), high + 0.06 * (high - low)


def loss_curves(study: Study) -> FigureBase:
    """Draw validation loss against step."""
    return _figure(study, train=False)


def training_loss(study: Study) -> FigureBase:
    """Draw training loss against step, with a logarithmic step axis because the first updates decide the outcome."""
    return _figure(study, train=True)


def _figure(study: Study, *, train: bool) -> FigureBase:
    panels, notes = study.panels(study.runs)
    last = series.last_step(study.runs)
    table_of = training_table if train else validation_table
    tables = [table_of(study, p.runs) for p in panels]
    if all(table.empty for table in tables):
        raise Lacks(f"no run recorded a {'training' if train else 'validation'} loss")
    low, high = limits(tables, [r for p in panels for r in series.entropies(p.runs)])

    fig, axes = layout.subplots(study.paper, len(panels))
    one_text = series.same_text(panels)
    for ax, panel, table in zip(axes, panels, tables, strict=True):
        labelled = not one_text or layout.place_of(ax).is_last_col()
        draw_losses(ax, study, panel.runs, table, labelled=labelled, top=high, smooth=train)
        layout.panel_title(ax, panel.title)
        ax.set_ylim(low, high)
        on_axes.step_axis(ax, last + (not train), log=train)
    x_label = on_axes.LOG_STEP if train else on_axes.STEP
    layout.label_axes(fig, axes, x_label, "loss, nats per token", once=study.look.facet is not None)
    what = "Training loss" if train else "Validation loss"
    bold = "their mean (of steps 0.9 t to t)" if train else "their mean"
    shown = pd.concat([p.runs for p in panels])
    layout.title(fig, study, f"{what} by {study.look.by}; thin: seeds, bold: {bold}", shown, notes)
    layout.legend(fig, study.paper, study.look, shown, layout.outcome_handles(shown, ["diverged"]))
    return fig
