"""Layer x step heat map of the gradient norm: when it vanishes, and where first."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from normstudy.figures import layout, style
from normstudy.figures.gradient_profile import needs_layers
from normstudy.figures.study import MODULE, Lacks, Study, arms, at_most_one, geometric, held

MAX_PANELS = 15


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
    runs = at_most_one(study, study.at_headline())
    parts = arms(runs, study)
    dropped = len(parts) - MAX_PANELS
    maps = [(h, d, r, map_table(study.modules, r)) for h, d, r in parts[:MAX_PANELS]]
    maps = [m for m in maps if m[3].size]
    if not maps:
        raise Lacks("no recorded gradient norm is finite and above zero")
    low = min(np.nanmin(m[3].to_numpy()) for m in maps)
    high = max(np.nanmax(m[3].to_numpy()) for m in maps)
    norm = LogNorm(low, high if high > low else 2 * low)

    across = len({d for _, d, _, _ in maps})  # a row per color where that fits
    columns = next((c for c in (across, 3, 4, 2) if 1 < c <= 4 and len(maps) % c == 0), 3)
    fig, axes = layout.panels(len(maps), columns=columns, height=1.55)
    last = layout.last_step(runs)
    mesh = None
    for ax, (hue, dash, part, table) in zip(axes, maps, strict=True):
        mesh = draw_map(ax, table, norm)
        words = [f"{study.look.hue}={hue}"] + ([f"{study.look.dash}={dash}"] if study.look.dash else [])
        words.append(f"{len(part)} seed{'s' if len(part) > 1 else ''}")
        first, rest = words[0], ", ".join(words[1:])
        ax.set_title(f"{first},\n{rest}" if columns > 2 else f"{first}, {rest}", loc="left")
        layout.step_axis(ax, last, log=True)
        ax.set_xlim(0, last + 1)
        layout.layer_axis(ax, "y", int(part["n_layers"].max()) - 1)
        warmup = {int(w) for w in part["warmup_steps"]}
        if len(warmup) == 1 and (end := warmup.pop()) > 0:
            ax.axvline(end, color="white", lw=1, ls=(0, (2, 1.5)), gid=f"warmup:{end}")
    for ax in layout.first_column(axes):
        ax.set_ylabel("layer")
    for ax in layout.bottom_row(axes):
        ax.set_xlabel("step, log of step + 1")
    assert mesh is not None
    bar = fig.colorbar(mesh, ax=axes, label=f"{MODULE} grad_norm", aspect=30, pad=0.02)
    layout.norm_ticks(bar.ax)
    shown = pd.concat([m[2] for m in maps])
    notes = held(study, shown)
    if dropped > 0:
        notes.append(f"{len(maps)} of {len(parts)} panels shown")
    if (shown["outcome"] == "diverged").any():
        notes.append("a diverged run counts until it ends")
    if (shown["warmup_steps"] > 0).any():
        notes.append("dashed: end of the warmup")
    layout.title(fig, study, f"Gradient norm of {MODULE} by layer and step; geometric mean over seeds", shown, notes)
    return fig
