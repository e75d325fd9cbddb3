"""Loss against step: the validation loss, and the training loss with its early spikes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstudy.figures import layout, style
from normstudy.figures.study import Look, Study, arms, of_runs

MAX_PANELS = 6


def validation_table(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """hue, dash, run_id, step, value: every evaluation, the one after the last update at step n_steps."""
    early = of_runs(study.val_losses, runs, ["hue", "dash"])
    final = runs.assign(step=runs["n_steps"], value=runs["final_val_loss"].astype(float))[early.columns]
    rows: pd.DataFrame = pd.concat([early, final[np.isfinite(final["value"])]])
    return rows.sort_values(["run_id", "step"], ignore_index=True)


def training_table(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """hue, dash, run_id, step, value: the training loss of every step, as recorded."""
    return of_runs(study.train_losses, runs, ["hue", "dash"])


def ends_table(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """hue, dash, run_id, step, value: the last finite training loss of each diverged run."""
    diverged = runs[runs["outcome"] == "diverged"]
    last = training_table(study, diverged).groupby("run_id", observed=True).tail(1)
    return last.reset_index(drop=True)


def draw_losses(
    ax: Axes,
    table: pd.DataFrame,
    ends: pd.DataFrame,
    sizes: dict[tuple[str, str], int],
    look: Look,
    references: Sequence[tuple[str, float]],
    *,
    labelled: bool,
    top: float,
    smooth: bool = False,
) -> None:
    """Draw curves (`layout.draw_seed_lines`), diverged runs and reference losses on one panel.

    A diverged run's marker sits at its last finite training loss, or at the upper edge where that is higher.
    """
    layout.reference_lines(ax, references, labelled=labelled)
    layout.draw_seed_lines(ax, table, sizes, look, log=False, smooth=smooth)
    ends = ends.assign(value=ends["value"].clip(upper=top))
    for run_id, hue, step, value in zip(ends["run_id"], ends["hue"], ends["step"], ends["value"], strict=True):
        last = table[(table["run_id"] == run_id) & (table["step"] < step)].tail(1)
        if len(last):  # from the last evaluation to the marker
            way = [[last["step"].iloc[0], step], [last["value"].iloc[0], value]]
            ax.plot(*way, color=look.colors[hue], lw=style.THIN, ls=(0, (1, 1)), gid=f"way:{run_id}")
    layout.draw_ends(ax, ends, look)


def limits(tables: Sequence[pd.DataFrame], references: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Of the loss axis: the lowest loss or reference, and just above uniform prediction or the first loss."""
    low = min([v for _, v in references] + [float(t["value"].min()) for t in tables if len(t)])
    starts = [float(t.loc[t["step"] == t["step"].min(), "value"].max()) for t in tables if len(t)]
    uniform = max(v for _, v in references)
    high = max([uniform, *(s for s in starts if s < 2 * uniform)])
    return low - 0.05 * (high - low), high + 0.06 * (high - low)


def loss_curves(study: Study) -> Figure:
    """Validation loss against step, a panel per setting that is neither color nor line style."""
    return _figure(study, train=False)


def training_loss(study: Study) -> Figure:
    """Training loss against step (log axis: the first updates decide), panels as `loss_curves`."""
    return _figure(study, train=True)


def _figure(study: Study, *, train: bool) -> Figure:
    settings, notes = study.settings(study.runs, MAX_PANELS)
    last = layout.last_step(study.runs)
    table_of = training_table if train else validation_table
    tables = [table_of(study, s.runs) for s in settings]
    references = [r for s in settings for r in layout.entropies(s.runs)]
    low, high = limits(tables, references)

    fig, axes = layout.panels(len(settings))
    one_text = layout.same_text(settings)
    edge = layout.last_column(axes)
    for ax, setting, table in zip(axes, settings, tables, strict=True):
        part = arms(setting.runs, study)
        draw_losses(
            ax,
            table,
            ends_table(study, setting.runs),
            layout.sizes(part),
            study.look,
            layout.entropies(setting.runs),
            labelled=ax in edge or not one_text,
            top=high,
            smooth=train,
        )
        layout.panel_title(ax, setting.title)
        ax.set_ylim(low, high)
        layout.step_axis(ax, last + (not train), log=train)
    layout.label_axes(
        fig,
        axes,
        "step, log of step + 1" if train else "step",
        "loss, nats per token",
        once=study.look.facet is not None,
    )
    what = "Training loss" if train else "Validation loss"
    bold = "their mean (of steps 0.9 t to t)" if train else "their mean"
    shown = pd.concat([s.runs for s in settings])
    layout.title(fig, study, f"{what} by {study.look.by}; thin: seeds, bold: {bold}", shown, notes)
    extra = [layout.outcome_handle("diverged")] if (shown["outcome"] == "diverged").any() else []
    layout.legend(fig, study.look, shown, extra)
    return fig
