"""Draw the figure heatmap: gradient norm by layer and step, which shows when and in which layer gradients vanish."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import FigureBase

from normstudy.analysis.grid import count_text
from normstudy.analysis.words import phrase
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.gradient_profile import needs_layers, one_arm
from normstudy.figures.look import folded
from normstudy.figures.study import Lacks, Panel, Study, at_most_one, held

MAX_PANELS = 15
LONG = 34  # characters that fit above each of three panels in a row
LINE = 48  # characters that fit above each of two panels in a row


def map_table(modules: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean over seeds, with a row for each layer and a column for each recorded step."""
    mean = series.geometric(modules[modules["run_id"].isin(runs["run_id"])], ["layer", "step"])
    return mean.pivot_table(index="layer", columns="step", values="mid")


def draw_map(ax: Axes, table: pd.DataFrame, norm: LogNorm) -> QuadMesh:
    """Draw one map of gradient norms. The color at a recorded step extends to the next recorded step."""
    steps = table.columns.to_numpy(float)
    layers = table.index.to_numpy(float)
    x = np.append(steps, steps[-1] + 1)
    y = np.append(layers, layers[-1] + 1) - 0.5
    finite = np.ma.masked_invalid(table.to_numpy(float))
    # the map is rasterized, because thousands of small paths would make an SVG or PDF slow and show hairlines
    return ax.pcolormesh(x, y, finite, cmap=style.SEQUENTIAL, norm=norm, rasterized=True)


def heatmap(study: Study) -> FigureBase:
    """Draw heat maps, each for a group of runs that differ only in their seeds. Not all groups of a study are drawn."""
    needs_layers(study)
    facet = study.look.facet
    parts, notes = one_arm(study) if facet else _arms(study)
    maps = [(p, map_table(study.modules, p.runs)) for p in parts]
    maps = [(p, table) for p, table in maps if table.size]
    if 0 < len(maps) < len(parts):
        notes.append(f"{len(parts) - len(maps)} panels without a gradient above zero are not shown")
    if not maps:
        raise Lacks("no recorded gradient norm is finite and above zero")
    low = min(np.nanmin(table.to_numpy()) for _, table in maps)
    high = max(np.nanmax(table.to_numpy()) for _, table in maps)
    norm = LogNorm(low, high if high > low else 2 * low)

    # maps are sorted by color, then by line style. If the grid has one column per line style, each row shows one color.
    across = len({p.runs["dash"].iloc[0] for p, _ in maps})
    columns = 4 if facet else next((c for c in (across, 3, 4, 2) if 1 < c <= 4 and len(maps) % c == 0), 3)
    fig, axes = layout.subplots(study.paper, len(maps), columns=columns, height=layout.LOW if facet else 1.55)
    shown = pd.concat([p.runs for p, _ in maps])
    last = series.last_step(shown)
    one_line = all(len(p.title) <= LINE for p, _ in maps)
    for ax, (panel, table) in zip(axes, maps, strict=True):
        mesh = draw_map(ax, table, norm)
        ax.set_title(
            panel.title.replace("\n", " ") if study.paper.fit(columns) == 2 and one_line else panel.title, loc="left"
        )
        on_axes.step_axis(ax, last, log=True)
        ax.set_xlim(0, last + 1)
        on_axes.layer_axis(ax, "y", int(panel.runs["n_layers"].max()) - 1)
        warmup = {int(w) for w in panel.runs["warmup_steps"].dropna()}
        if len(warmup) == 1 and (end := warmup.pop()) > 0:
            ax.axvline(end, color="white", lw=1, ls=(0, (2, 1.5)), gid=f"warmup:{end}")
    layout.label_axes(fig, axes, on_axes.LOG_STEP, "layer", once=facet is not None)
    bar = fig.colorbar(mesh, ax=axes, label=study.paper.measured, aspect=30, pad=0.02)
    on_axes.norm_ticks(bar.ax.yaxis)
    notes += series.zeros(study, study.modules[study.modules["run_id"].isin(shown["run_id"])])
    if (shown["outcome"] == "diverged").any():
        notes.append("a diverged run counts until it ends")
    if (shown["warmup_steps"] > 0).any():
        notes.append("dashed: end of the warmup")
    what = f"{study.paper.what.capitalize()} by layer and step; geometric mean over seeds"
    layout.title(fig, study, what + (f"; a panel per {facet}" if facet else ""), shown, notes)
    return fig


def _arms(study: Study) -> tuple[list[Panel], list[str]]:
    """Return at most MAX_PANELS panels, one for each combination of color and line style, and notes on omitted runs."""
    runs = at_most_one(study, study.at_headline())
    parts = study.look.arms(runs)
    panels = []
    for hue, dash, part in parts[:MAX_PANELS]:
        words = [phrase(study.look.dash, dash)] if study.look.dash else []
        words.append(count_text(len(part), "seed"))
        name = phrase(study.look.hue, hue)
        first = name if len(name) < LONG else folded(name, LONG)
        panels.append(Panel(f"{first},\n{', '.join(words)}", part))
    left = [phrase(study.look.hue, hue) + (f", {phrase(study.look.dash, dash)}" if study.look.dash else "")
            for hue, dash, _ in parts[MAX_PANELS:]]  # fmt: skip
    study.omitted.extend(left)
    dropped = [f"{MAX_PANELS} of {len(parts)} panels shown"] if len(parts) > MAX_PANELS else []
    return panels, held(study, runs) + dropped
