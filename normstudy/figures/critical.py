"""Draw the figures of a search: critical_depth, critical_curve and phase_map."""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from normstudy.analysis.outcomes import FAILED, UNJUDGED
from normstudy.analysis.select import KINDS, native
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, style
from normstudy.figures.final_grid import GOLDEN, XAxis, beside_x, draw_ticks, x_axis
from normstudy.figures.look import swept, varies
from normstudy.figures.study import Lacks, Panel, Study
from normstudy.search.answer import counted, edges
from normstudy.search.posterior import posterior
from normstudy.search.rounds import COUNTS_AS, CRASHED, FAIL, NOT_LEARN, count
from normstudy.search.settings import Settings

MAX_CELLS = 12  # largest number of panels of critical_curve, unless there is a facet
ARROW = [(-3, 0), (-3, 11), (-8, 11), (0, 20), (8, 11), (3, 11), (3, 0), (-3, 0)]  # arrow upward from (0, 0)
BLACK, PALE = "#222222", "#DDDDDD"
CURVES: dict[str, tuple[str, float, style.LineStyle, str]] = {  # of each edge: color, line width, line style, label
    FAIL: ("#8A8A8A", 2.2, "-", "share that fails"), NOT_LEARN: (BLACK, 0.9, (0, (3.5, 1.5)), "that does not learn"),
}  # fmt: skip


def searched(study: Study) -> tuple[Study, Settings, XAxis]:
    """Return the study with panels for all varying fields but the searched one, and its search and the x axis."""
    if (settings := study.search) is None:
        raise Lacks("the study has no search for critical values: start one with normstudy critical")
    cells = study.ended.assign(**{settings.of: 0})
    x = x_axis(cells[["n_layers", "data_sha256"]] if varies(cells, "n_layers") else cells, ())
    return replace(study, panel_fields=tuple(swept(cells))), settings, x


def critical_table(runs: pd.DataFrame, x: XAxis, settings: Settings) -> pd.DataFrame:
    """Return both critical values for each value of `x.column`: the rows of `edges`, and `place`, the x position.

    If a critical value is beyond the searched range, value, low and high contain the nearest end of the range.
    """
    rows = []
    for value, cell in runs.groupby(x.column, dropna=False):
        for row in edges(cell, settings):
            end = {"above": settings.high, "below": settings.low}.get(row["bound"])
            bound = {} if end is None else {"value": end, "low": end, "high": end}
            rows.append({**row, **bound, "place": x.places[native(x.column, value)]})
    return pd.DataFrame(rows).sort_values("place", kind="stable")


def draw_edge(ax: Axes, table: pd.DataFrame, shift: float, color: str, ls: style.LineStyle, name: str) -> None:
    """Draw critical values of one kind, from `critical_table`, with intervals or arrows. shift: is added to `place`."""
    at, value, known = table["place"] + shift, table["value"], table["bound"] == ""
    fails = (table["edge"] == FAIL).all()
    lengths = [(value - table["low"])[known], (table["high"] - value)[known]]
    ax.errorbar(at[known], value[known], lengths, fmt="none", ecolor=color, elinewidth=0.8, capsize=1.5, zorder=3)
    ax.plot(
        at, value.where(known), color=color, ls=ls, lw=1.3 if fails else 0.7, marker="o", ms=4, mew=0.8,
        mfc=color if fails else "white", zorder=4, gid=f"edge:{name}",
    )  # fmt: skip
    for x, y, bound in zip(at[~known], value[~known], table["bound"][~known], strict=True):
        corners = ARROW if bound == "above" else [(across, -along) for across, along in ARROW]
        ax.plot([x], [y], marker=corners, ms=14, mfc="white", mec=color, mew=0.8, zorder=4, gid=f"{bound}:{name}")


def value_axis(ax: Axes, which: str, settings: Settings, values: list[float]) -> None:
    """Scale the plot's axis `which` (x or y) for the searched key. Include all `values`, with room at both ends."""
    low, *_, high = sorted(settings.axis.position(value) for value in values)
    room = max(0.06 * (high - low), 30 - (high - low) / 2)  # at least 0.6 decades in all, so that the axis has ticks
    if settings.axis.offset:
        getattr(ax, f"set_{which}scale")("function", functions=on_axes.LOG1P)
        getattr(ax, f"set_{which}ticks")(on_axes.log_ticks(round(max(values)), 1.5))
    else:
        getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(*sorted(settings.axis.exact(p) for p in (low - room, high + room)))
    on_axes.norm_ticks(getattr(ax, f"{which}axis"))


def draw_runs(ax: Axes, x: "pd.Series[float]", y: "pd.Series[float]", runs: pd.DataFrame) -> None:
    """Draw a mark for each run. The mark's shape and color show the run's outcome."""
    for name, mine in runs.groupby("outcome"):
        ax.plot(
            x[mine.index], y[mine.index], ls="none", marker=style.OUTCOME_MARKERS[str(name)], ms=3.8, mew=0.3,
            mec="white", color=style.OUTCOME_COLORS[str(name)], zorder=2, label=name, gid=f"runs:{name}",
        )  # fmt: skip


def _finished(panels: list[Panel]) -> pd.DataFrame:
    return pd.concat([panel.runs for panel in panels]).query("outcome != @CRASHED")


def _handles(axes: list[Axes]) -> list[Artist]:
    return list({str(a.get_label()): a for ax in axes for a in ax.get_legend_handles_labels()[0]}.values())


def critical_depth(study: Study, *, maps: bool = False) -> FigureBase:
    """Draw critical values against depth, or another field. maps: also draw a mark for each run."""
    cells, settings, x = searched(study)
    colored = study.ended["hue"].isin(study.look.colors) & study.ended["dash"].isin(study.look.dashes)
    look, runs = beside_x(x, study.look, study.ended[colored])
    what = f"The {settings.of} at which half of the runs fail or half do not learn, against {x.column}"
    if maps:
        look = replace(study.look, hue="", dash=None, colors={"": BLACK}, dashes={"": "-"})
        runs, what = study.ended.assign(hue="", dash=""), f"{what}, and every run's outcome"
    panels, notes = cells.panels(runs, skip=[c for c in (x.column, look.hue, look.dash) if c])
    shown = _finished(panels).sort_values([settings.of, "run_id"])
    fig, axes = layout.subplots(study.paper, len(panels), height=2.4, share=1.0)
    arms = [(hue, dash) for hue in look.colors for dash in look.dashes]
    beside = len(look.dashes) if look.hue == x.column else len(arms)  # number of arms at the same x position
    drawn = []
    for ax, panel in zip(axes, panels, strict=True):
        for hue, dash, part in look.arms(panel.runs):
            drawn.append(table := critical_table(part, x, settings))
            ls = look.dashes[dash] if KINDS.get(x.column) in (int, float) else "none"
            for j, edge in enumerate(COUNTS_AS):
                shift = 0.3 * x.gap * ((arms.index((hue, dash)) % beside + 0.5 * j + 0.25) / beside - 0.5)
                draw_edge(ax, table[table["edge"] == edge], shift, look.colors[hue], ls, f"{edge}:{hue}:{dash}")
        if maps:
            mine = shown[shown["run_id"].isin(panel.runs["run_id"])]
            place = mine[x.column].map(lambda v: x.places[native(x.column, v)])
            at = place + x.gap * ((np.arange(len(mine)) * GOLDEN + 0.5) % 1 - 0.5) / 2
            draw_runs(ax, at, mine[settings.of].astype(float), mine)
        layout.panel_title(ax, panel.title)
        draw_ticks(ax, study, x)
    table, handles = pd.concat(drawn), _handles(axes)
    ends = [settings.low, settings.high, *shown[settings.of]]
    value_axis(axes[0], "y", settings, ends if maps else [*table["value"], *table["low"], *table["high"]])
    layout.label_axes(fig, axes, x.column, settings.of if maps else f"critical {settings.of}", once=True)
    layout.title(fig, cells, what, shown, notes)
    centered = [(across, along - 10) for across, along in ARROW]
    handles += [
        Line2D([], [], ls="none", marker="o", ms=4, color=BLACK, label=f"{FAIL} (95 % interval)"),
        Line2D([], [], ls="none", marker="o", ms=4, color=BLACK, mfc="white", label=NOT_LEARN),
        Line2D([], [], ls="none", marker=centered, ms=7.7, color=BLACK, mfc="white", label="beyond the range"),
    ][: 3 if table["bound"].any() else 2]
    layout.legend(fig, study.paper, look, shown, handles)
    return fig


def draw_curve(ax: Axes, runs: pd.DataFrame, settings: Settings) -> None:
    """Draw a mark per run, the expected shares that fail or do not learn, and the critical values' 95 % intervals."""
    axis, (_, pairs), runs = settings.axis, counted(runs, settings), runs[runs["outcome"] != CRASHED]
    curve = range(settings.ends[0], settings.ends[1] + 1)
    for edge, (color, lw, ls, label) in CURVES.items():
        found = posterior(count(edge, pairs), *settings.ends)
        band = {"color": PALE} if edge == FAIL else {"fc": "none", "ec": BLACK, "lw": 0.5, "ls": ls}
        ends = sorted(axis.exact(p) for p in found.interval)
        ax.axvspan(*ends, zorder=0, label=f"{edge}: 95 % interval", gid=f"interval:{edge}", **band)
        points = [axis.exact(p) for p in curve], [found.share(p) for p in curve]
        ax.plot(*points, color=color, lw=lw, ls=ls, zorder=1, label=label, gid=f"share:{edge}")
    part = 0.06 + 0.2 * ((np.arange(len(runs)) * GOLDEN + 0.5) % 1)
    y = np.where(runs["outcome"].isin(FAILED), 1 + part, np.where(runs["outcome"] == UNJUDGED, 0.5, -part))
    draw_runs(ax, runs[settings.of].astype(float), pd.Series(y, runs.index), runs)


def critical_curve(study: Study) -> FigureBase:
    """Draw a panel by `draw_curve` for each cell. The runs of a cell differ only in their seed and the searched key."""
    cells, settings, _ = searched(study)
    panels, notes = cells.panels(study.ended, MAX_CELLS)
    shown = _finished(panels)
    fig, axes = layout.subplots(study.paper, len(panels), columns=3, height=1.6)
    for ax, panel in zip(axes, panels, strict=True):
        draw_curve(ax, panel.runs.sort_values([settings.of, "run_id"]), settings)
        layout.panel_title(ax, panel.title)
    axes[0].set(ylim=(-0.32, 1.32), yticks=(0, 0.5, 1))
    value_axis(axes[0], "x", settings, [settings.low, settings.high, *shown[settings.of]])
    layout.label_axes(fig, axes, settings.of, "share of runs", once=True)
    layout.title(fig, cells, f"Outcome of each run by {settings.of}; above: failed, below: did not fail", shown, notes)
    layout.legend(fig, study.paper, replace(study.look, hue="", dash=None), shown, _handles(axes))
    return fig
