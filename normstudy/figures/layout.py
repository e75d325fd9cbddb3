"""Lay out a figure's panels, titles, axis labels and legend."""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D

from normstudy.analysis.grid import count_text, phrase
from normstudy.figures import style
from normstudy.figures.look import Look, varies
from normstudy.figures.paper import Paper, width_of
from normstudy.figures.study import Study

FEW = 6  # a figure with more panels than this has low panels
LOW = 1.3  # height of a low panel, in inches
CHARACTERS, MARGIN = 18.4, 0.64  # characters that fit in an inch of a title; margin in inches
HANDLE = 6  # width of a legend handle, in characters


def subplots(
    paper: Paper, n: int, *, columns: int | None = None, height: float = 2.0, share: float | None = None
) -> tuple[FigureBase, list[Axes]]:
    """Make a figure of `n` panels with shared axes. By default, a row has 3 panels, or 4 shorter panels if n > FEW.

    A narrow figure has fewer panels in a row. share: the figure's width divided by the paper's width, by default 0.62
    for one panel and 1 for more panels.
    """
    if columns is None and n > FEW:
        height = min(height, LOW)
    columns = columns or (3 if n <= FEW else 4)
    across = paper.fit({4: 2, 5: 5}.get(n, min(n, columns)) if columns == 3 else min(n, columns))
    down = -(-n // across)
    fig = paper.new(height * down + 0.9, share or (1.0 if n > 1 else 0.62))
    axes: list[Axes] = list(fig.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for spare in axes[n:]:
        spare.remove()
    for ax in axes[max(0, n - across) : n]:  # the lowest panel of each column needs tick labels
        ax.tick_params(labelbottom=True)
    return fig, axes[:n]


def place_of(ax: Axes) -> SubplotSpec:
    """Return a panel's position in the figure's grid of panels."""
    spec = ax.get_subplotspec()
    assert spec is not None
    return spec


def label_axes(fig: FigureBase, axes: Sequence[Axes], x: str, y: str, *, once: bool) -> None:
    """Label the axes of outer panels. once: a figure with more than FEW panels gets a single y label."""
    if once and len(axes) > FEW:
        fig.supylabel(y.replace("\n", " "), fontsize="medium")
        below = [ax for ax in axes if place_of(ax).is_last_row()]
    else:
        below = lowest(axes)
        for ax in [ax for ax in axes if place_of(ax).is_first_col()]:
            ax.set_ylabel(y)
    for ax in below:
        ax.set_xlabel(x)


def lowest(axes: Sequence[Axes]) -> list[Axes]:
    """Return the last panel of each column."""
    return list({place_of(ax).colspan.start: ax for ax in axes}.values())


def panel_title(ax: Axes, text: str) -> None:
    """Set a panel's title, wrapped to the panel's width. Afterwards, `title` makes room for wrapped lines."""
    width = int((width_of(ax.figure) - MARGIN) * CHARACTERS / place_of(ax).get_gridspec().ncols)
    lines = textwrap.wrap(text, width, break_on_hyphens=False) if len(text) > width else [text]
    ax.set_title("\n".join(lines), loc="left")


def _extra_title_lines(fig: FigureBase) -> int:
    """Count the lines that wrapped titles add. A row of panels whose longest title has 3 lines adds 2 lines."""
    axes: list[Axes] = fig.axes  # type: ignore[assignment]  # the stubs declare `axes` with another type
    places = [(spec.rowspan.start, ax.get_title("left")) for ax in axes if (spec := ax.get_subplotspec()) is not None]
    most = dict(sorted((row, text.count("\n")) for row, text in places))  # keeps the largest number of each row
    return sum(most.values())


def title(fig: FigureBase, study: Study, what: str, runs: pd.DataFrame, notes: Sequence[str] = ()) -> None:
    """Write `what`, study name, numbers of seeds and diverged runs, and `notes` into the figure's label and title."""
    same = study.named(runs, [c for c in ("n_layers", "peak_lr") if not varies(runs, c)])
    seeds = runs.groupby(["hue", "dash", *study.panel_fields], dropna=False).size()
    low, high = seeds.min(), seeds.max()
    count = count_text(low, "seed") if low == high else f"{low} to {high} seeds"
    count = count if study.search is None else count.replace("seed", "run") + " a cell"
    diverged = int((runs["outcome"] == "diverged").sum())
    gone = [f"{diverged} of {len(runs)} runs diverged"] * bool(diverged)
    gone += [f"not shown: {study.unfinished} unfinished or failed"] * bool(study.unfinished)
    parts = [f"study {study.folder.resolve().name}", ", ".join(same), count, *gone, *notes, *study.look.notes]
    width = int((width_of(fig) - MARGIN) * CHARACTERS)
    second = " · ".join(filter(None, parts))
    fig.set_label(f"{what}. {second}.")
    lines = [*textwrap.wrap(what, width), *textwrap.wrap(second, width)] if study.paper.title else []
    study.paper.grow(fig, 0.16 * (len(lines) - 2) + 0.13 * _extra_title_lines(fig))
    if lines:
        fig.suptitle("\n".join(lines), x=0.01, ha="left", linespacing=1.35)


def legend(
    fig: FigureBase, paper: Paper, look: Look, runs: pd.DataFrame, more: Sequence[Artist] = (), *, markers: bool = False
) -> None:
    """Draw a legend below the panels: colors, line styles, then `more`. markers: also show how markers are filled."""
    hues = [n for n in look.colors if look.hue and (runs["hue"] == n).any()]
    dashes = [n for n in look.dashes if look.dash and (runs["dash"] == n).any()]
    colors = [Line2D([], [], color=look.colors[n], lw=style.BOLD, label=phrase(look.hue, n)) for n in hues]
    patterns = [
        Line2D([], [], color="black", lw=style.BOLD, ls=look.dashes[n], label=phrase(look.dash or "", n))
        for n in dashes
    ]
    for n, line in zip(dashes, patterns, strict=True) if markers else ():
        line.set(marker="o", ms=5, mew=0.6, mec="black", mfc=look.filling(n, "black"), lw=1.1)
    groups: list[Sequence[Artist]] = [group for group in (colors, patterns, more) if group]
    room = width_of(fig) * 16  # characters that fit in a row
    widths = {artist: HANDLE + len(str(artist.get_label())) for group in groups for artist in group}
    per_row = max(2, int(room / max(widths.values())))
    rows = [group[i : i + per_row] for group in groups for i in range(0, len(group), per_row)]
    if sum(widths.values()) <= room:
        rows = [list(widths)]
    paper.grow(fig, 0.15 * (len(rows) - 1))
    # matplotlib fills a legend column by column, so the rows are transposed
    columns = list(zip_longest(*rows, fillvalue=Line2D([], [], ls="none", label=" ")))
    handles = [artist for column in columns for artist in column]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(columns))


def outcome_handles(runs: pd.DataFrame, outcomes: Iterable[str] = style.OUTCOME_MARKERS) -> list[Artist]:
    """Return legend entries with the markers of the given outcomes that occur in `runs`."""
    found = [name for name in outcomes if (runs["outcome"] == name).any()]
    return [Line2D([], [], ls="none", marker=style.OUTCOME_MARKERS[n], color=style.GREY, label=n) for n in found]
