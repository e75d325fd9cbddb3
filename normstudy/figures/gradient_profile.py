"""Draw the figures gradient_profile and residual_path: gradient norm against layer, at a few steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.look import Look
from normstudy.figures.study import Lacks, Panel, Study

MAX_ROWS = 3


def needs_layers(study: Study) -> None:
    """Raise Lacks if no run has two layers, or if no run that `Study.at_headline` selects recorded the module."""
    if int(study.runs["n_layers"].max()) < 2:
        raise Lacks("every run has n_layers=1, and two layers are needed")
    if not study.modules["run_id"].isin(study.at_headline()["run_id"]).any():
        raise Lacks(f"no run recorded the module {study.paper.module}")


def profile_table(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean and range over seeds, for each color (hue), line style (dash) and layer."""
    return series.geometric(series.of_runs(rows, runs, ["hue", "dash"]), ["hue", "dash", "layer"])


def draw_profile(ax: Axes, table: pd.DataFrame, look: Look) -> None:
    """For each color and line style, draw a line through the geometric means and a band from lowest to highest seed."""
    for hue, dash, arm in look.arms(table):
        color = look.colors[hue]
        if len(arm) > 1:
            ax.fill_between(arm["layer"], arm["low"], arm["high"], color=color, alpha=0.15, lw=0)
        ax.plot(
            arm["layer"], arm["mid"], color=color, ls=look.dashes[dash], lw=1.2, ms=3.5,
            marker="." if len(arm) <= 16 else "", gid=f"mean:{hue}:{dash}",
        )  # fmt: skip


def gradient_profile(study: Study) -> FigureBase:
    """Draw the gradient norm of a module, or another quantity, against layer, at a few steps of training."""
    needs_layers(study)
    what, top = f"{study.paper.what.capitalize()} against layer", int(study.at_headline()["n_layers"].max()) - 1
    return _figure(study, study.modules, what, "layer", study.paper.measured, top)


def residual_path(study: Study) -> FigureBase:
    """Draw the norm of dLoss/dx_l against l, from the embedding's output (0) to the last block's output (n_layers)."""
    rows, runs = study.residual, study.at_headline()
    if not rows["run_id"].isin(runs["run_id"]).any():
        raise Lacks("no run recorded the residual stream")
    what, top = "Gradient along the residual stream", int(runs["n_layers"].max())
    return _figure(study, rows, what, "l (0: embedding)", "norm of dLoss/dx_l", top)


def _figure(study: Study, rows: pd.DataFrame, what: str, x_label: str, y_label: str, top: int) -> FigureBase:
    """Draw gradient norms against layer, with a column of panels for each snapshot of training.

    Only runs with the largest depth and the learning rate nearest to HEADLINE_LR are drawn. Each combination of the
    panel fields' values gets a row of panels. A study with a facet (a text field with too many values for colors) is
    drawn differently: each value of the facet gets a panel, and colors show the snapshots.
    rows: columns run_id, step, layer, value. top: the last layer.
    """
    if study.look.facet is not None:
        return _facets(study, rows, what, x_label, y_label, top)
    panels, notes = study.panels(study.at_headline(), MAX_ROWS, skip=("n_layers", "peak_lr"))
    shots = [
        series.snapshots(rows[rows["run_id"].isin(p.runs["run_id"])], int(p.runs["n_steps"].max())) for p in panels
    ]
    columns = max(len(s) for s in shots)
    if columns == 0:
        raise Lacks("no recorded gradient norm is finite")

    across = study.paper.fit(columns)
    lines = -(-columns // across)  # of each panel
    height = 1.7 if len(panels) * lines > 1 else 2.1
    fig = study.paper.new(height * len(panels) * lines + 0.9)
    grid = fig.subplots(len(panels) * lines, across, sharex=True, sharey=True, squeeze=False)
    for line, panel, row in zip(grid.reshape(len(panels), -1), panels, shots, strict=True):
        for ax, (name, at) in zip(line, row, strict=False):
            draw_profile(ax, profile_table(at, panel.runs), study.look)
            ax.set_title(name)
        for ax in line[len(row) :]:
            ax.remove()
        for ax in line[: len(row) : across]:
            ax.set_ylabel(f"{panel.title}\n{y_label}" if panel.title else y_label)
    on_axes.norm_axis(grid[0, 0])
    on_axes.layer_axis(grid[0, 0], "x", top)
    for ax in layout.lowest([ax for ax in grid.ravel() if ax.figure is not None]):
        ax.set_xlabel(x_label)
        ax.tick_params(labelbottom=True)
    shown = pd.concat([p.runs for p in panels])
    notes += ended(shots, shown) + series.zeros(study, pd.concat([at for row in shots for _, at in row]))
    layout.title(fig, study, f"{what} by {study.look.by}; geometric mean and range over seeds", shown, notes)
    layout.legend(fig, study.paper, study.look, shown)
    return fig


def one_color(study: Study, runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the runs in the legend's last color, and a note such as `n_layers=12` if other colors are left out."""
    hues = [h for h in study.look.colors if (runs["hue"] == h).any()]
    note = [f"{study.look.hue}={hues[-1]}"] if len(hues) > 1 else []
    return runs[runs["hue"] == hues[-1]], note


def one_arm(study: Study) -> tuple[list[Panel], list[str]]:
    """Return a panel for each value of the facet (a text field with many values), and notes on omitted runs.

    A panel holds one heat map, so only runs with the legend's last color and first line style are kept.
    """
    runs, notes = one_color(study, study.at_headline())
    dashes = [d for d in study.look.dashes if (runs["dash"] == d).any()]
    if len(dashes) > 1:
        runs = runs[runs["dash"] == dashes[0]]
        notes.append(f"{study.look.dash}={dashes[0]}")
    panels, more = study.panels(runs, MAX_ROWS)
    return panels, notes + more


def _facets(study: Study, rows: pd.DataFrame, what: str, x_label: str, y_label: str, top: int) -> FigureBase:
    """Draw a panel for each value of the facet (a text field). Colors show the first, second and last snapshot."""
    runs, notes = one_color(study, study.at_headline())
    panels, more = study.panels(runs, MAX_ROWS)
    shown = pd.concat([p.runs for p in panels])
    shots = series.snapshots(rows[rows["run_id"].isin(shown["run_id"])], int(shown["n_steps"].max()))
    if not shots:
        raise Lacks("no recorded gradient norm is finite")
    few = dict.fromkeys((0, min(1, len(shots) - 1), len(shots) - 1))
    at = pd.concat([shots[i][1].assign(hue=shots[i][0].removeprefix("step ")) for i in few])
    at = series.of_runs(at, shown, ["dash"])
    names = list(at["hue"].unique())
    colors = dict(zip(names, reversed(style.shades(len(names), style.ORDERED)), strict=True))
    look = replace(study.look, hue="step", colors=colors)

    fig, axes = layout.subplots(study.paper, len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        mine = at[at["run_id"].isin(panel.runs["run_id"])]
        draw_profile(ax, series.geometric(mine, ["hue", "dash", "layer"]), look)
        layout.panel_title(ax, panel.title)
        on_axes.layer_axis(ax, "x", top)
    on_axes.norm_axis(axes[0])
    layout.label_axes(fig, axes, x_label, y_label, once=True)
    notes += more + ended([shots], shown) + series.zeros(study, at)
    layout.title(fig, study, f"{what} by {look.by}; geometric mean and range over seeds", shown, notes)
    layout.legend(fig, study.paper, look, at)
    return fig


def ended(shots: Sequence[Sequence[tuple[str, pd.DataFrame]]], runs: pd.DataFrame) -> list[str]:
    """Return a note if runs ended before a snapshot, because the snapshot's mean then includes fewer seeds."""
    columns = range(max(len(s) for s in shots))
    least = min(len({r for s in shots if i < len(s) for r in s[i][1]["run_id"]}) for i in columns)
    if least == len(runs):
        return []
    return [f"a diverged run counts until it ends (fewest in a snapshot: {least} of {len(runs)})"]
