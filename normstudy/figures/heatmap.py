"""Layer x step heat map of the gradient norm: when it vanishes, and where first."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from normstudy.figures import layout, style
from normstudy.figures.gradient_profile import needs_layers, one_arm
from normstudy.figures.study import MODULE, Lacks, Setting, Study, arms, at_most_one, folded, geometric, held, zeros

MAX_PANELS = 15
LONG = 34  # characters that fit above a panel in a row of three
LINE = 48  # characters above a panel in a row of two


def map_table(modules: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Rows layers, columns recorded steps: the seeds' geometric mean of grad_norm, NaN where none."""
    mean = geometric(modules[modules["run_id"].isin(runs["run_id"])], ["layer", "step"])
    return mean.pivot_table(index="layer", columns="step", values="mid")


def draw_map(ax: Axes, table: pd.DataFrame, norm: LogNorm) -> QuadMesh:
    """Draw one map; the cell of a recorded step reaches to the next recorded one."""
    steps = table.columns.to_numpy(float)
    layers = table.index.to_numpy(float)
    x = np.append(steps, steps[-1] + 1)
    y = np.append(layers, layers[-1] + 1) - 0.5
    # one image inside an SVG or PDF: thousands of small paths would make it slow and show hairlines
    return ax.pcolormesh(
        x, y, np.ma.masked_invalid(table.to_numpy(float)), cmap=style.SEQUENTIAL, norm=norm, rasterized=True
    )


def heatmap(study: Study) -> Figure:
    """A map per color and line style, at the headline's depth and rate, on one logarithmic scale."""
    needs_layers(study)
    facet = study.look.facet
    parts, notes = one_arm(study) if facet else _arms(study)
    maps = [(s, map_table(study.modules, s.runs)) for s in parts]
    maps = [m for m in maps if m[1].size]
    if 0 < len(maps) < len(parts):
        notes.append(f"{len(parts) - len(maps)} panels without a gradient above zero are not shown")
    if not maps:
        raise Lacks("no recorded gradient norm is finite and above zero")
    low = min(np.nanmin(m[1].to_numpy()) for m in maps)
    high = max(np.nanmax(m[1].to_numpy()) for m in maps)
    norm = LogNorm(low, high if high > low else 2 * low)

    across = len({s.runs["dash"].iloc[0] for s, _ in maps})  # a row per color where that fits
    columns = 4 if facet else next((c for c in (across, 3, 4, 2) if 1 < c <= 4 and len(maps) % c == 0), 3)
    fig, axes = layout.panels(len(maps), columns=columns, height=layout.LOW if facet else 1.55)
    shown = pd.concat([s.runs for s, _ in maps])
    last = layout.last_step(shown)
    one_line = all(len(s.title) <= LINE for s, _ in maps)
    mesh = None
    for ax, (setting, table) in zip(axes, maps, strict=True):
        part = setting.runs
        mesh = draw_map(ax, table, norm)
        ax.set_title(setting.title.replace("\n", " ") if columns == 2 and one_line else setting.title, loc="left")
        layout.step_axis(ax, last, log=True)
        ax.set_xlim(0, last + 1)
        layout.layer_axis(ax, "y", int(part["n_layers"].max()) - 1)
        warmup = {int(w) for w in part["warmup_steps"]}
        if len(warmup) == 1 and (end := warmup.pop()) > 0:
            ax.axvline(end, color="white", lw=1, ls=(0, (2, 1.5)), gid=f"warmup:{end}")
    layout.label_axes(fig, axes, "step, log of step + 1", "layer", once=facet is not None)
    assert mesh is not None
    bar = fig.colorbar(mesh, ax=axes, label=f"{MODULE} grad_norm", aspect=30, pad=0.02)
    layout.norm_ticks(bar.ax.yaxis)
    notes += zeros(study, study.modules[study.modules["run_id"].isin(shown["run_id"])])
    if (shown["outcome"] == "diverged").any():
        notes.append("a diverged run counts until it ends")
    if (shown["warmup_steps"] > 0).any():
        notes.append("dashed: end of the warmup")
    what = f"Gradient norm of {MODULE} by layer and step; geometric mean over seeds"
    layout.title(fig, study, what + (f"; a panel per {facet}" if facet else ""), shown, notes)
    return fig


def _arms(study: Study) -> tuple[list[Setting], list[str]]:
    """A panel per color and line style, and notes on what is held or left out."""
    runs = at_most_one(study, study.at_headline())
    parts = arms(runs, study)
    settings = []
    for hue, dash, part in parts[:MAX_PANELS]:
        words = [f"{study.look.dash}={dash}"] if study.look.dash else []
        words.append(f"{len(part)} seed{'s' if len(part) > 1 else ''}")
        name = f"{study.look.hue}={hue}"
        first = name if len(name) < LONG else folded(hue, LONG)
        settings.append(Setting(f"{first},\n{', '.join(words)}", part))
    dropped = [f"{MAX_PANELS} of {len(parts)} panels shown"] if len(parts) > MAX_PANELS else []
    return settings, held(study, runs) + dropped
