"""Draw the figures in which an axis shows layers: gradient_profile, residual_path and heatmap."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import FigureBase

from normstudy.analysis.grid import count_text, phrase
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.look import Look, folded
from normstudy.figures.study import Lacks, Panel, Study, at_most_one, held

MAX_ROWS = 3
MAX_MAPS = 15
LONG, LINE = 34, 48  # characters that fit above a heat map: LONG in a row of three maps, LINE in a row of two


def needs_layers(study: Study) -> None:
    """Raise Lacks if all runs have one layer, or if no run of `Study.at_headline` recorded `paper.module`."""
    if int(study.runs["n_layers"].max()) < 2:
        raise Lacks("every run has n_layers=1, and two layers are needed")
    if not study.modules["run_id"].isin(study.at_headline()["run_id"]).any():
        raise Lacks(f"no run recorded the module {study.paper.module}")


def draw_profile(ax: Axes, rows: pd.DataFrame, look: Look) -> None:
    """For each arm, draw a line through the geometric means over seeds, and a band from lowest to highest value."""
    for hue, dash, arm in look.arms(series.geometric(rows, ["hue", "dash", "layer"])):
        color = look.colors[hue]
        if len(arm) > 1:
            ax.fill_between(arm["layer"], arm["low"], arm["high"], color=color, alpha=0.15, lw=0)
        ax.plot(
            arm["layer"], arm["mid"], color=color, ls=look.dashes[dash], lw=1.2, ms=3.5,
            marker="." if len(arm) <= 16 else "", gid=f"mean:{hue}:{dash}",
        )  # fmt: skip


def gradient_profile(study: Study) -> FigureBase:
    """Draw the gradient norm, or another quantity, of a module against layer, at a few steps of training."""
    needs_layers(study)
    what, top = f"{study.paper.what.capitalize()} against layer", int(study.at_headline()["n_layers"].max()) - 1
    return _profiles(study, study.modules, what, "layer", f"{study.paper.module} {study.paper.quantity}", top)


def residual_path(study: Study) -> FigureBase:
    """Draw the norm of dLoss/dx_l against `l`. l=0 is the embedding's output, l=n_layers the last block's output."""
    rows, runs = study.residual, study.at_headline()
    if not rows["run_id"].isin(runs["run_id"]).any():
        raise Lacks("no run recorded the residual stream")
    what, top = "Gradient along the residual stream", int(runs["n_layers"].max())
    return _profiles(study, rows, what, "l (0: embedding)", "norm of dLoss/dx_l", top)


def _profiles(study: Study, rows: pd.DataFrame, what: str, x_label: str, y_label: str, top: int) -> FigureBase:
    """Draw gradient norms against layer, with a column of panels for each snapshot of training.

    Only the runs of `Study.at_headline` are drawn. Each combination of values of the panel fields gets a row of panels.
    A study with a facet is drawn by `_facets`. rows: columns run_id, step, layer, value. top: the last layer.
    """
    if study.look.facet is not None:
        return _facets(study, rows, what, x_label, y_label, top)
    panels, notes = study.panels(study.at_headline(), MAX_ROWS)
    shots = [series.snapshots(rows[rows["run_id"].isin(p.runs["run_id"])], series.last_step(p.runs)) for p in panels]
    columns = max(len(s) for s in shots)
    if columns == 0:
        raise Lacks("no recorded gradient norm is finite")

    across = study.paper.fit(columns)
    lines = -(-columns // across)  # rows of axes for each panel
    fig = study.paper.new((1.7 if len(panels) * lines > 1 else 2.1) * len(panels) * lines + 0.9)
    grid = fig.subplots(len(panels) * lines, across, sharex=True, sharey=True, squeeze=False)
    for line, panel, row in zip(grid.reshape(len(panels), -1), panels, shots, strict=True):
        for ax, (name, at) in zip(line, row, strict=False):
            draw_profile(ax, series.of_runs(at, panel.runs, ["hue", "dash"]), study.look)
            ax.set_title(name)
        for ax in line[len(row) :]:
            ax.remove()
        for ax in line[: len(row) : across]:
            ax.set_ylabel(f"{panel.title}\n{y_label}" if panel.title else y_label)
    on_axes.norm_axis(grid[0, 0])
    on_axes.layer_axis(grid[0, 0].xaxis, top)
    for ax in layout.lowest([ax for ax in grid.ravel() if ax.figure is not None]):
        ax.set_xlabel(x_label)
        ax.tick_params(labelbottom=True)
    shown = pd.concat([p.runs for p in panels])
    notes += ended(shots, shown) + series.zeros(study, pd.concat([at for row in shots for _, at in row]))
    layout.title(fig, study, f"{what} by {study.look.by}; geometric mean and range over seeds", shown, notes)
    layout.legend(fig, study.paper, study.look, shown)
    return fig


def _of_facet(study: Study, *, one_dash: bool) -> tuple[list[Panel], list[str]]:
    """Return a panel for each value of the facet (a text field with many values), and notes on omitted runs.

    Only runs in the legend's last color are shown. one_dash: show only runs in the legend's first line style.
    """
    look, runs, notes = study.look, study.at_headline(), list[str]()
    dash = [("dash", look.dash, [*look.dashes])] if one_dash else []
    for column, field, ordered in [("hue", look.hue, [*look.colors][::-1]), *dash]:
        found = [name for name in ordered if (runs[column] == name).any()]
        runs = runs[runs[column] == found[0]]
        notes += [f"{field}={found[0]}"] * (len(found) > 1)
    panels, more = study.panels(runs, MAX_ROWS)
    return panels, notes + more


def _facets(study: Study, rows: pd.DataFrame, what: str, x_label: str, y_label: str, top: int) -> FigureBase:
    """Draw a panel for each value of the facet (a text field). Colors show the first, second and last snapshot."""
    panels, notes = _of_facet(study, one_dash=False)
    shown = pd.concat([p.runs for p in panels])
    shots = series.snapshots(rows[rows["run_id"].isin(shown["run_id"])], series.last_step(shown))
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
        draw_profile(ax, at[at["run_id"].isin(panel.runs["run_id"])], look)
        layout.panel_title(ax, panel.title)
        on_axes.layer_axis(ax.xaxis, top)
    on_axes.norm_axis(axes[0])
    layout.label_axes(fig, axes, x_label, y_label, once=True)
    notes += ended([shots], shown) + series.zeros(study, at)
    layout.title(fig, study, f"{what} by {look.by}; geometric mean and range over seeds", shown, notes)
    layout.legend(fig, study.paper, look, at)
    return fig


def ended(shots: Sequence[Sequence[tuple[str, pd.DataFrame]]], runs: pd.DataFrame) -> list[str]:
    """Return a note if a snapshot's means include fewer seeds, because runs ended before the snapshot."""
    columns = range(max(len(s) for s in shots))
    least = min(len({r for s in shots if i < len(s) for r in s[i][1]["run_id"]}) for i in columns)
    if least == len(runs):
        return []
    return [f"a diverged run counts until it ends (fewest in a snapshot: {least} of {len(runs)})"]


def map_table(modules: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return geometric means over seeds, as a table with a row for each layer and a column for each recorded step."""
    mean = series.geometric(modules[modules["run_id"].isin(runs["run_id"])], ["layer", "step"])
    return mean.pivot_table(index="layer", columns="step", values="mid")


def draw_map(ax: Axes, table: pd.DataFrame, norm: LogNorm) -> QuadMesh:
    """Draw one map of gradient norms. The color at a recorded step extends to the next recorded step."""
    steps, layers = table.columns.to_numpy(float), table.index.to_numpy(float)
    x, y = np.append(steps, steps[-1] + 1), np.append(layers, layers[-1] + 1) - 0.5
    finite = np.ma.masked_invalid(table.to_numpy(float))
    # rasterized, because thousands of small paths would make an SVG or PDF slow, with hairlines between the paths
    return ax.pcolormesh(x, y, finite, cmap=style.SEQUENTIAL, norm=norm, rasterized=True)


def heatmap(study: Study) -> FigureBase:
    """Draw a heat map for each group of runs that differ only in their seeds. At most MAX_MAPS are drawn."""
    needs_layers(study)
    facet = study.look.facet
    parts, notes = _of_facet(study, one_dash=True) if facet else _arms(study)
    maps = [(p, table) for p in parts if (table := map_table(study.modules, p.runs)).size]
    if 0 < len(maps) < len(parts):
        notes.append(f"{len(parts) - len(maps)} panels without a gradient above zero are not shown")
    if not maps:
        raise Lacks("no recorded gradient norm is finite and above zero")
    low = min(np.nanmin(table.to_numpy()) for _, table in maps)
    high = max(np.nanmax(table.to_numpy()) for _, table in maps)
    norm = LogNorm(low, high if high > low else 2 * low)

    # maps are sorted by color, then by line style: with one column for each line style, each row shows one color
    across = len({p.runs["dash"].iloc[0] for p, _ in maps})
    columns = 4 if facet else next((c for c in (across, 3, 4, 2) if 1 < c <= 4 and len(maps) % c == 0), 3)
    fig, axes = layout.subplots(study.paper, len(maps), columns=columns, height=layout.LOW if facet else 1.55)
    shown = pd.concat([p.runs for p, _ in maps])
    last = series.last_step(shown)
    one_line = study.paper.fit(columns) == 2 and all(len(p.title) <= LINE for p, _ in maps)
    for ax, (panel, table) in zip(axes, maps, strict=True):
        mesh = draw_map(ax, table, norm)
        ax.set_title(panel.title.replace("\n", " ") if one_line else panel.title, loc="left")
        on_axes.step_axis(ax, last, log=True)
        ax.set_xlim(0, last + 1)
        on_axes.layer_axis(ax.yaxis, int(panel.runs["n_layers"].max()) - 1)
        warmup = {int(w) for w in panel.runs["warmup_steps"].dropna()}
        if len(warmup) == 1 and (end := warmup.pop()) > 0:
            ax.axvline(end, color="white", lw=1, ls=(0, (2, 1.5)), gid=f"warmup:{end}")
    layout.label_axes(fig, axes, on_axes.LOG_STEP, "layer", once=facet is not None)
    bar = fig.colorbar(mesh, ax=axes, label=f"{study.paper.module} {study.paper.quantity}", aspect=30, pad=0.02)
    on_axes.norm_ticks(bar.ax.yaxis)
    notes += series.zeros(study, study.modules[study.modules["run_id"].isin(shown["run_id"])])
    notes += ["a diverged run counts until it ends"] * bool((shown["outcome"] == "diverged").any())
    notes += ["dashed: end of the warmup"] * bool((shown["warmup_steps"] > 0).any())
    what = f"{study.paper.what.capitalize()} by layer and step; geometric mean over seeds"
    layout.title(fig, study, what + (f"; a panel per {facet}" if facet else ""), shown, notes)
    return fig


def _arms(study: Study) -> tuple[list[Panel], list[str]]:
    """Return at most MAX_MAPS panels, one for each combination of color and line style, and notes on omitted runs."""
    look, runs = study.look, at_most_one(study.at_headline(), study.panel_fields, None)
    arms, panels = look.arms(runs), []
    for i, (hue, dash, part) in enumerate(arms):
        first, rest = phrase(look.hue, hue), [phrase(look.dash, dash)] if look.dash else []
        if i < MAX_MAPS:
            panels.append(Panel(f"{folded(first, LONG)},\n{', '.join([*rest, count_text(len(part), 'seed')])}", part))
        else:
            study.omitted.append(", ".join([first, *rest]))
    return panels, held(study, runs) + [f"{MAX_MAPS} of {len(arms)} panels shown"] * (len(panels) < len(arms))
