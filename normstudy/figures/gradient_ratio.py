"""First over last layer: one number per step that says whether the gradient still reaches the first layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstudy.figures import layout, style
from normstudy.figures.gradient_profile import needs_layers
from normstudy.figures.study import MODULE, Lacks, Look, Study, arms, of_runs, zeros

MAX_PANELS = 6


def ratio_table(modules: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """hue, dash, run_id, step, value: grad_norm of the first layer over that of the last.

    A ratio that is zero or not finite has no place on a log axis and is left out.
    """
    rows = of_runs(modules, runs, ["hue", "dash", "n_layers"])
    first = rows.loc[rows["layer"] == 0, ["run_id", "step", "grad_norm"]]
    last = rows[(rows["layer"] == rows["n_layers"] - 1) & (rows["n_layers"] > 1)]
    ratio = last.merge(first, "left", on=["run_id", "step"], suffixes=("", "_first"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = ratio.assign(value=ratio["grad_norm_first"] / ratio["grad_norm"])
    columns = ["run_id", "step", "hue", "dash", "value"]
    good: pd.DataFrame = ratio.loc[np.isfinite(ratio["value"]) & (ratio["value"] > 0), columns]
    return good.reset_index(drop=True)


def without_ratio(study: Study, runs: pd.DataFrame) -> list[str]:
    """A note where the first or the last layer's gradient is exactly 0, so that there is no ratio to draw."""
    rows = of_runs(study.modules, runs, ["n_layers"])
    return zeros(study, rows[(rows["layer"] == 0) | (rows["layer"] == rows["n_layers"] - 1)])


def draw_ratio(
    ax: Axes, table: pd.DataFrame, runs: pd.DataFrame, sizes: dict[tuple[str, str], int], look: Look
) -> None:
    """Draw the ratio's curves, the line of equal gradients, the warmups' ends and the diverged runs."""
    ax.axhline(1, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid="reference:equal")
    if look.dash == "warmup_steps":
        for warmup in sorted({int(w) for w in runs["warmup_steps"] if w > 0}):
            line = ax.axvline(warmup, color=style.GREY, lw=0.7, ls=look.dashes[str(warmup)], alpha=0.6, zorder=0)
            line.set_gid(f"warmup:{warmup}")
    layout.draw_seed_lines(ax, table, sizes, look, log=True)
    diverged = runs.loc[runs["outcome"] == "diverged", "run_id"]
    layout.draw_ends(ax, table[table["run_id"].isin(diverged)].groupby("run_id", observed=True).tail(1), look)
    layout.norm_axis(ax)


def gradient_ratio(study: Study) -> Figure:
    """First/last-layer ratio of the FFN output matrix's gradient norm against step."""
    needs_layers(study)
    deep = study.runs[study.runs["n_layers"] > 1]
    settings, notes = study.settings(deep, MAX_PANELS)
    fig, axes = layout.panels(len(settings))
    drawn = 0
    for ax, setting in zip(axes, settings, strict=True):
        table = ratio_table(study.modules, setting.runs)
        drawn += len(table)
        draw_ratio(ax, table, setting.runs, layout.sizes(arms(setting.runs, study)), study.look)
        layout.panel_title(ax, setting.title)
        layout.step_axis(ax, layout.last_step(study.runs), log=True)
    if not drawn:
        raise Lacks("no ratio of two layers is finite and above zero")
    layout.label_axes(
        fig, axes, "step, log of step + 1", "grad_norm,\nfirst / last layer", once=study.look.facet is not None
    )
    shown = pd.concat([s.runs for s in settings])
    notes += without_ratio(study, shown)
    what = f"First/last-layer ratio of {MODULE}'s gradient norm by {study.look.by}; thin: seeds, bold: geometric mean"
    if study.look.dash == "warmup_steps" and (shown["warmup_steps"] > 0).any():
        notes.append("vertical line: end of the warmup")
    layout.title(fig, study, what, shown, notes)
    extra = [layout.outcome_handle("diverged")] if (shown["outcome"] == "diverged").any() else []
    layout.legend(fig, study.look, shown, extra)
    return fig
