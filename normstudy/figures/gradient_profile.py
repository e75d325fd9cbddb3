"""Gradient norm against layer, at init, after a few updates and at the end.

Both ends of a run are needed: at init the profile of post-norm is flat, and it falls apart in the first
un-warmed updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstudy.figures import layout, style
from normstudy.figures.study import MODULE, Lacks, Look, Setting, Study, geometric, of_runs, snapshots, zeros

MAX_ROWS = 3


def profile_table(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """hue, dash, layer, mid, low, high, n: geometric mean and range over seeds of each layer's grad_norm."""
    return geometric(of_runs(rows, runs, ["hue", "dash"]), ["hue", "dash", "layer"])


def draw_profile(ax: Axes, table: pd.DataFrame, look: Look) -> None:
    """A line per color and line style through the seeds' geometric mean, a band from least to greatest."""
    for hue, color in look.colors.items():
        for dash, pattern in look.dashes.items():
            arm = table[(table["hue"] == hue) & (table["dash"] == dash)].sort_values("layer")
            if arm.empty:
                continue
            if len(arm) > 1:
                ax.fill_between(arm["layer"], arm["low"], arm["high"], color=color, alpha=0.15, lw=0)
            ax.plot(
                arm["layer"], arm["mid"], color=color, ls=pattern, lw=1.2, ms=3.5,
                marker="." if len(arm) <= 16 else "", gid=f"mean:{hue}:{dash}",
            )  # fmt: skip


def snapshot_figure(study: Study, rows: pd.DataFrame, what: str, x_label: str, y_label: str, top: int) -> Figure:
    """Columns are snapshots; rows are the settings beside depth and rate, which stand at the headline's.

    With a facet a panel is one of its values, and the snapshots are colors.
    """
    if study.look.facet is not None:
        return _facets(study, rows, what, x_label, y_label, top)
    runs = study.at_headline()
    settings, notes = study.settings(runs, MAX_ROWS, skip=("n_layers", "peak_lr"))
    shots = [snapshots(rows[rows["run_id"].isin(s.runs["run_id"])], int(s.runs["n_steps"].max())) for s in settings]
    columns = max(len(s) for s in shots)
    if columns == 0:
        raise Lacks("no recorded gradient norm is finite")

    height = 1.7 if len(settings) > 1 else 2.1
    fig = Figure(figsize=(style.TWO_COLUMNS, height * len(settings) + 0.9), layout="constrained")
    grid = fig.subplots(len(settings), columns, sharex=True, sharey=True, squeeze=False)
    for line, setting, row in zip(grid, settings, shots, strict=True):
        for ax, (name, at) in zip(line, row, strict=False):
            draw_profile(ax, profile_table(at, setting.runs), study.look)
            ax.set_title(name)
        for ax in line[len(row) :]:
            ax.set_axis_off()
        line[0].set_ylabel(f"{setting.title}\n{y_label}" if setting.title else y_label)
    layout.norm_axis(grid[0, 0])
    for ax in grid[-1]:
        ax.set_xlabel(x_label)
        layout.layer_axis(ax, "x", top)
    shown = pd.concat([s.runs for s in settings])
    notes += gone(shots, shown) + zeros(study, pd.concat([at for row in shots for _, at in row]))
    layout.title(fig, study, f"{what} by {study.look.by}; geometric mean and range over seeds", shown, notes)
    layout.legend(fig, study.look, shown)
    return fig


def one_color(study: Study, runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs of the last color, and a note that names it, unless the title does; for small panels."""
    hues = [h for h in study.look.colors if (runs["hue"] == h).any()]
    note = [f"{study.look.hue}={hues[-1]}"] if len(hues) > 1 else []
    return runs[runs["hue"] == hues[-1]], note


def one_arm(study: Study) -> tuple[list[Setting], list[str]]:
    """A panel per value of the facet, with the runs of the last color and the first line style."""
    runs, notes = one_color(study, study.at_headline())
    dashes = [d for d in study.look.dashes if (runs["dash"] == d).any()]
    if len(dashes) > 1:
        runs = runs[runs["dash"] == dashes[0]]
        notes.append(f"{study.look.dash}={dashes[0]}")
    settings, more = study.settings(runs, MAX_ROWS)
    return settings, notes + more


def _facets(study: Study, rows: pd.DataFrame, what: str, x_label: str, y_label: str, top: int) -> Figure:
    """A panel per value of the facet: at init, after a few updates and at the end, each in its color."""
    runs, notes = one_color(study, study.at_headline())
    settings, more = study.settings(runs, MAX_ROWS)
    shown = pd.concat([s.runs for s in settings])
    shots = snapshots(rows[rows["run_id"].isin(shown["run_id"])], int(shown["n_steps"].max()))
    if not shots:
        raise Lacks("no recorded gradient norm is finite")
    few = dict.fromkeys((0, min(1, len(shots) - 1), len(shots) - 1))
    at = pd.concat([shots[i][1].assign(hue=shots[i][0].removeprefix("step ")) for i in few])
    at = of_runs(at, shown, ["dash"])
    names = list(at["hue"].unique())
    colors = dict(zip(names, reversed(style.shades(len(names), style.ORDERED)), strict=True))
    look = replace(study.look, hue="step", colors=colors)

    fig, axes = layout.panels(len(settings))
    for ax, setting in zip(axes, settings, strict=True):
        draw_profile(ax, geometric(at[at["run_id"].isin(setting.runs["run_id"])], ["hue", "dash", "layer"]), look)
        layout.panel_title(ax, setting.title)
        layout.layer_axis(ax, "x", top)
    layout.norm_axis(axes[0])
    layout.label_axes(fig, axes, x_label, y_label, once=True)
    notes += more + gone([shots], shown) + zeros(study, at)
    layout.title(fig, study, f"{what} by {look.by}; geometric mean and range over seeds", shown, notes)
    layout.legend(fig, look, at)
    return fig


def gone(shots: Sequence[Sequence[tuple[str, pd.DataFrame]]], runs: pd.DataFrame) -> list[str]:
    """A note where a run has ended before a snapshot, so that a mean stands for fewer seeds."""
    columns = range(max(len(s) for s in shots))
    least = min(len({r for s in shots if i < len(s) for r in s[i][1]["run_id"]}) for i in columns)
    if least == len(runs):
        return []
    return [f"a diverged run counts until it ends (fewest in a snapshot: {least} of {len(runs)})"]


def gradient_profile(study: Study) -> Figure:
    """Gradient norm of the FFN output matrix against layer, at snapshots of training."""
    rows = study.modules
    needs_layers(study)
    return snapshot_figure(
        study,
        rows,
        f"Gradient norm of {MODULE} against layer",
        "layer",
        f"{MODULE} grad_norm",
        int(study.at_headline()["n_layers"].max()) - 1,
    )


def needs_layers(study: Study) -> None:
    """Raise Lacks unless the deepest runs have two layers whose `MODULE` was recorded."""
    deepest = int(study.runs["n_layers"].max())
    if deepest < 2:
        raise Lacks("every run has n_layers=1, and two layers are needed")
    runs = study.at_headline()
    if not study.modules["run_id"].isin(runs["run_id"]).any():
        raise Lacks(f"no run of it recorded the module {MODULE}")
