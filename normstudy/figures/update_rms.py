"""Draw the figure update_rms: the root mean square of an update in units of the learning rate, against step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import FigureBase

from normstudy.analysis import load
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.study import Lacks, Study
from normstudy.study import whole


def update_rms(study: Study) -> FigureBase:
    """Draw the mean update_rms over seeds against step, and the stationary law if all runs use Adam with one beta1."""
    panels, notes = study.panels(study.runs)
    shown = pd.concat([panel.runs for panel in panels])
    rows = whole.read(study.folder, "steps", shown, ["run_id", "step", "lr", "update_norm"], text=False)
    rows = series.of_runs(rows, shown, ["hue", "dash", "n_params"])
    rows["value"] = load.update_rms(rows, rows["n_params"]).astype(float)
    rows = rows[np.isfinite(rows["value"]) & (rows["value"] > 0)]
    if rows.empty:
        raise Lacks("no update's root mean square is finite and above zero")
    fig, axes = layout.subplots(study.paper, len(panels))
    handles = layout.outcome_handles(shown, ["diverged"])
    if set(shown["optimizer"]) <= {"adam", "adamw"} and len(set(shown["beta1"])) == 1:
        law = load.stationary_rms(float(shown["beta1"].iloc[0]))
        drawn = [ax.axhline(law, color=style.GREY, lw=0.8, ls=(0, (1, 1.2)), gid="reference:law") for ax in axes]
        drawn[0].set_label(f"Adam on noise: {law:.3g}")
        handles.append(drawn[0])
    for ax, panel in zip(axes, panels, strict=True):
        table = rows[rows["run_id"].isin(panel.runs["run_id"])]
        on_axes.draw_seed_lines(ax, table, panel.runs, study.look, log=False, smooth=True, thin=False)
        on_axes.draw_ends(ax, series.ends(table, panel.runs), study.look)
        on_axes.norm_axis(ax)
        layout.panel_title(ax, panel.title)
        on_axes.step_axis(ax, series.last_step(study.runs), log=True)
    layout.label_axes(fig, axes, on_axes.LOG_STEP, "update RMS / lr", once=study.look.facet is not None)
    what = f"Update RMS / lr by {study.look.by}; mean while all seeds last, over steps 0.9 t to t"
    layout.title(fig, study, what, shown, notes)
    layout.legend(fig, study.paper, study.look, shown, handles)
    return fig
