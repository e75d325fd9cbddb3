"""Draw the figures whose x axis is the step: loss_curves, training_loss, gradient_ratio, update_rms, early_warning."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from normstudy.analysis import load
from normstudy.analysis.early_warning import ALL, QUANTITIES, STEPS
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.layers import needs_layers
from normstudy.figures.look import Look
from normstudy.figures.paper import USUAL
from normstudy.figures.study import Lacks, Panel, Study
from normstudy.study import whole


def _figure(
    study: Study,
    panels: Sequence[Panel],
    tables: Sequence[pd.DataFrame],
    draw: Callable[[Axes, pd.DataFrame, pd.DataFrame], None],
    words: tuple[str, str],
    notes: Sequence[str],
    *,
    log: bool = True,
    handles: Sequence[Artist] = (),
) -> FigureBase:
    """Draw lines against step. draw: draws one panel. words: title and y label. handles: more entries of the legend."""
    fig, axes = layout.subplots(study.paper, len(panels))
    for ax, panel, table in zip(axes, panels, tables, strict=True):
        draw(ax, table, panel.runs)
        layout.panel_title(ax, panel.title)
        on_axes.step_axis(ax, series.last_step(study.runs) + (not log), log=log)
    what, y_label = words
    layout.label_axes(fig, axes, on_axes.LOG_STEP if log else on_axes.STEP, y_label, once=study.look.facet is not None)
    shown = pd.concat([panel.runs for panel in panels])
    layout.title(fig, study, what, shown, notes)
    layout.legend(fig, study.paper, study.look, shown, [*layout.outcome_handles(shown, ["diverged"]), *handles])
    return fig


def validation_table(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Return all validation losses, with columns run_id, step, value, hue, dash. The final loss has step n_steps."""
    early = training_table(study, runs, "val_loss")
    final = runs.assign(step=runs["n_steps"], value=runs["final_val_loss"].astype(float))[early.columns]
    rows: pd.DataFrame = pd.concat([early, final[np.isfinite(final["value"])]])
    return rows.sort_values(["run_id", "step"], ignore_index=True)


def training_table(study: Study, runs: pd.DataFrame, column: str = "train_loss") -> pd.DataFrame:
    """Return the finite values of a column of the table `steps`, with columns run_id, step, value, hue, dash."""
    rows = series.of_runs(study.steps.rename(columns={column: "value"}), runs, ["hue", "dash"])
    found: pd.DataFrame = rows.loc[np.isfinite(rows["value"]), ["run_id", "step", "value", "hue", "dash"]]
    return found


def draw_losses(
    ax: Axes, study: Study, runs: pd.DataFrame, table: pd.DataFrame, *, labelled: bool, top: float, smooth: bool = False
) -> None:
    """Draw loss curves and reference losses. Mark each diverged run's last finite loss, but not above y = `top`."""
    look = study.look
    on_axes.draw_references(ax, series.entropies(runs), labelled=labelled)
    on_axes.draw_seed_lines(ax, table, runs, look, log=False, smooth=smooth)
    ends = series.ends(training_table(study, runs), runs).assign(value=lambda rows: rows["value"].clip(upper=top))
    for run_id, hue, step, value in zip(ends["run_id"], ends["hue"], ends["step"], ends["value"], strict=True):
        last = table[(table["run_id"] == run_id) & (table["step"] < step)].tail(1)
        if len(last):  # a dotted line leads from the last evaluation to the marker
            way = [[last["step"].iloc[0], step], [last["value"].iloc[0], value]]
            ax.plot(*way, color=look.colors[hue], lw=style.THIN, ls=(0, (1, 1)), gid=f"way:{run_id}")
    on_axes.draw_ends(ax, ends, look)


def limits(tables: Sequence[pd.DataFrame], references: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Return limits of the loss axis that include all references, the lowest loss, and each table's first losses.

    The first losses of a table are ignored if one of them is at least twice the loss of uniform prediction.
    """
    low = min([v for _, v in references] + [float(t["value"].min()) for t in tables if len(t)], default=0.0)
    starts = [float(t.loc[t["step"] == t["step"].min(), "value"].max()) for t in tables if len(t)]
    uniform = max((v for _, v in references), default=max(starts, default=1.0))
    high = max([uniform, *(s for s in starts if s < 2 * uniform)])
    return low - 0.05 * (high - low), high + 0.06 * (high - low)


def losses(study: Study, *, train: bool) -> FigureBase:
    """Draw validation losses against step. train: instead draw training losses against the logarithm of step + 1."""
    panels, notes = study.panels(study.runs)
    tables = [(training_table if train else validation_table)(study, p.runs) for p in panels]
    which, bold = ("training", " (of steps 0.9 t to t)") if train else ("validation", "")
    if all(table.empty for table in tables):
        raise Lacks(f"no run recorded a {which} loss")
    low, high = limits(tables, [r for p in panels for r in series.entropies(p.runs)])
    one_text = series.same_text(panels)

    def draw(ax: Axes, table: pd.DataFrame, runs: pd.DataFrame) -> None:
        labelled = not one_text or layout.place_of(ax).is_last_col()
        draw_losses(ax, study, runs, table, labelled=labelled, top=high, smooth=train)
        ax.set_ylim(low, high)

    what = f"{which.capitalize()} loss by {study.look.by}; thin: seeds, bold: their mean{bold}"
    return _figure(study, panels, tables, draw, (what, "loss, nats per token"), notes, log=train)


def ratio_table(modules: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Divide the first layer's value by the last layer's. Return the finite, positive ratios in the column `value`."""
    rows = series.of_runs(modules, runs, ["hue", "dash", "n_layers"])
    first = rows.loc[rows["layer"] == 0, ["run_id", "step", "value"]]
    last = rows[(rows["layer"] == rows["n_layers"] - 1) & (rows["n_layers"] > 1)]
    ratio = last.merge(first, "left", on=["run_id", "step"], suffixes=("", "_first"))
    ratio = ratio.assign(value=ratio["value_first"] / ratio["value"])
    return series.positive(ratio)[["run_id", "step", "hue", "dash", "value"]]


def without_ratio(study: Study, runs: pd.DataFrame) -> list[str]:
    """Return a note if the gradient of a first or last layer is exactly 0. A ratio with 0 cannot be drawn."""
    rows = series.of_runs(study.modules, runs, ["n_layers"])
    return series.zeros(study, rows[(rows["layer"] == 0) | (rows["layer"] == rows["n_layers"] - 1)])


def ratio_notes(study: Study, runs: pd.DataFrame) -> list[str]:
    """Return notes that say which ratios cannot be drawn, and what vertical lines mean."""
    warmed = study.look.dash == "warmup_steps" and (runs["warmup_steps"] > 0).any()
    return without_ratio(study, runs) + ["vertical line: end of the warmup"] * bool(warmed)


def draw_ratio(ax: Axes, table: pd.DataFrame, runs: pd.DataFrame, look: Look) -> None:
    """Draw ratios against step, a horizontal line at 1, vertical lines where warmups end, and marks at divergences."""
    ax.axhline(1, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid="reference:equal")
    if look.dash == "warmup_steps":
        for warmup in sorted({int(w) for w in runs["warmup_steps"] if w > 0}):
            line = ax.axvline(warmup, color=style.GREY, lw=0.7, ls=look.dashes[str(warmup)], alpha=0.6, zorder=0)
            line.set_gid(f"warmup:{warmup}")
    on_axes.draw_seed_lines(ax, table, runs, look, log=True)
    on_axes.draw_ends(ax, series.ends(table, runs), look)
    on_axes.norm_axis(ax)


def gradient_ratio(study: Study) -> FigureBase:
    """Draw a ratio against step: the first layer's gradient norm, or another quantity, divided by the last layer's."""
    needs_layers(study)
    panels, notes = study.panels(study.runs[study.runs["n_layers"] > 1])
    tables = [ratio_table(study.modules, p.runs) for p in panels]
    if all(table.empty for table in tables):
        raise Lacks("no first/last-layer gradient ratio is finite and above zero")
    what = f"First/last-layer ratio of the {study.paper.what} by {study.look.by}; thin: seeds, bold: geometric mean"
    notes += ratio_notes(study, pd.concat([p.runs for p in panels]))
    words, draw = (what, f"{study.paper.quantity},\nfirst / last layer"), partial(draw_ratio, look=study.look)
    return _figure(study, panels, tables, draw, words, notes)


def update_rms(study: Study) -> FigureBase:
    """Draw update_rms, averaged over seeds. If all runs use Adam with equal beta1, draw a line at `stationary_rms`."""
    panels, notes = study.panels(study.runs)
    shown = pd.concat([panel.runs for panel in panels])
    rows = whole.read(study.folder, "steps", shown, ["run_id", "step", "lr", "update_norm"], text=False)
    rows = series.of_runs(rows, shown, ["hue", "dash", "n_params"])
    rows = series.positive(rows.assign(value=load.update_rms(rows, rows["n_params"]).astype(float)))
    if rows.empty:
        raise Lacks("no update's root mean square is finite and above zero")
    tables = [rows[rows["run_id"].isin(panel.runs["run_id"])] for panel in panels]
    adam = set(shown["optimizer"]) <= {"adam", "adamw"} and len(set(shown["beta1"])) == 1
    law = load.stationary_rms(float(shown["beta1"].iloc[0])) if adam else np.nan
    of_law: dict[str, Any] = {"color": style.GREY, "lw": 0.8, "ls": (0, (1, 1.2))}

    def draw(ax: Axes, table: pd.DataFrame, runs: pd.DataFrame) -> None:
        if adam:
            ax.axhline(law, **of_law, gid="reference:law")
        on_axes.draw_seed_lines(ax, table, runs, study.look, log=False, smooth=True, thin=False)
        on_axes.draw_ends(ax, series.ends(table, runs), study.look)
        on_axes.norm_axis(ax)

    handles = [Line2D([], [], **of_law, label=f"Adam on noise: {law:.3g}")] * adam
    what = f"Update RMS / lr by {study.look.by}; mean while all seeds last, over steps 0.9 t to t"
    return _figure(study, panels, tables, draw, (what, "update RMS / lr"), notes, handles=handles)


def early_warning(table: pd.DataFrame, path: Path) -> None:
    """Write a PNG file with each quantity's AUC against step, and a panel per kind of study. table: from `measure`."""
    rows = table[(table["placement"] == ALL) & table["step"].notna() & table["auc"].notna()]
    kinds = list(table["kind"].unique())
    with style.rc():
        fig, axes = layout.subplots(USUAL, len(kinds))
        for ax, kind in zip(axes, kinds, strict=True):
            for i, (quantity, color) in enumerate(zip(QUANTITIES, style.OWN_COLORS, strict=False)):
                part = rows[(rows["kind"] == kind) & (rows["quantity"] == quantity)]
                at = (part["step"].astype(float) + 1) * 1.05**i - 1  # apart, because intervals overlap
                around = [part["auc"] - part["low"], part["high"] - part["auc"]]
                ax.errorbar(at, part["auc"], yerr=around, fmt="o-", color=color, lw=1, capsize=2, label=quantity)
            ax.axhline(0.5, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1)
            on_axes.step_axis(ax, STEPS[-1], log=True)
            ax.set(xticks=STEPS, xlim=(-0.2, 1.2 * STEPS[-1]), ylim=(0, 1.03), title=kind)
        layout.label_axes(fig, axes, on_axes.LOG_STEP, "AUC", once=False)
        lines = "How well a quantity at a step tells which runs end stuck", "bars: 95 % intervals, dotted: chance"
        fig.suptitle("\n".join(lines), x=0.01, ha="left")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        assert isinstance(fig, Figure)
        style.save(fig, path, "png")
