"""Pieces that several figures share: the grid of panels, the title, the legend, axes, lines over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from normstudy.analysis.select import native
from normstudy.figures import style
from normstudy.figures.study import Look, Setting, Study, label, varies

FEW = 6  # panels of full height
LOW = 1.3  # inches, of a panel among many
CHARACTERS = 16.8  # of a title in an inch


def panels(
    n: int, *, columns: int | None = None, height: float = 2.0, width: float | None = None, sharex: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels that share their y axis, in rows of at most `columns`.

    By default in rows of three; of more than six panels in rows of four, and lower ones.
    """
    if columns is None and n > FEW:
        height = min(height, LOW)
    columns = columns or (3 if n <= FEW else 4)
    across = {4: 2, 5: 5}.get(n, min(n, columns)) if columns == 3 else min(n, columns)
    down = -(-n // across)
    if width is None:
        width = style.TWO_COLUMNS if across > 1 else style.TWO_COLUMNS * 0.62
    fig = Figure(figsize=(width, height * down + 0.9), layout="constrained")
    grid = fig.subplots(down, across, sharex=sharex, sharey=True, squeeze=False).ravel().tolist()
    for spare in grid[n:]:
        spare.remove()
    axes: list[Axes] = grid[:n]
    if sharex:
        for ax in axes[max(0, n - across) :]:  # a panel above a removed one is the lowest of its column
            ax.tick_params(labelbottom=True)
    return fig, axes


def bottom_row(axes: Sequence[Axes]) -> list[Axes]:
    """The lowest panel of each column."""
    lowest: dict[int, Axes] = {}
    for ax in axes:
        spec = ax.get_subplotspec()
        assert spec is not None
        lowest[spec.colspan.start] = ax
    return list(lowest.values())


def first_column(axes: Sequence[Axes]) -> list[Axes]:
    """The leftmost panel of each row."""
    return [ax for ax in axes if (spec := ax.get_subplotspec()) is not None and spec.is_first_col()]


def last_column(axes: Sequence[Axes]) -> list[Axes]:
    """The rightmost panel of each row, a row that is not full excepted."""
    return [ax for ax in axes if (spec := ax.get_subplotspec()) is not None and spec.is_last_col()]


def label_axes(fig: Figure, axes: Sequence[Axes], x: str, y: str, *, once: bool) -> None:
    """Label the outer panels, or with `once` the whole figure's y axis and the last row where it has many."""
    if once and len(axes) > FEW:
        fig.supylabel(y.replace("\n", " "), fontsize="medium")
        lowest = [ax for ax in axes if (spec := ax.get_subplotspec()) is not None and spec.is_last_row()]
    else:
        lowest = bottom_row(axes)
        for ax in first_column(axes):
            ax.set_ylabel(y)
    for ax in lowest:
        ax.set_xlabel(x)


# ---- words ----------------------------------------------------------------------------------------------


def panel_title(ax: Axes, text: str) -> None:
    """A panel's title, in as many lines as its width needs; `title` then makes the figure higher."""
    spec, fig = ax.get_subplotspec(), ax.figure
    assert spec is not None
    assert isinstance(fig, Figure)
    width = int(fig.get_figwidth() * CHARACTERS / spec.get_gridspec().ncols)
    ax.set_title(
        "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) if len(text) > width else text, loc="left"
    )


def _title_lines(fig: Figure) -> int:
    """The lines that panel titles need beyond one, over all rows of panels."""
    most: dict[int, int] = {}
    for ax in fig.axes:
        if (spec := ax.get_subplotspec()) is not None:
            row = spec.rowspan.start
            most[row] = max(most.get(row, 0), ax.get_title("left").count("\n"))
    return sum(most.values())


def shared(runs: pd.DataFrame, columns: Sequence[str]) -> str:
    """What all these runs have in common: `n_layers=6, peak_lr=3e-3`."""
    return ", ".join(f"{c}={label(native(c, runs[c].iloc[0]))}" for c in columns if not varies(runs, c))


def seeds(runs: pd.DataFrame, study: Study) -> str:
    """How many runs stand behind each line: `5 seeds`, or `2-5 seeds`."""
    keys = ["hue", "dash", *study.panel_fields]
    n = runs.groupby(keys, dropna=False).size()
    low, high = int(n.min()), int(n.max())
    return f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"


def title(fig: Figure, study: Study, what: str, runs: pd.DataFrame, notes: Sequence[str] = ()) -> None:
    """What is shown, of which study, from how many seeds, and what is left out."""
    name = study.folder.resolve().name
    context = [f"study {name}", shared(runs, ("n_layers", "peak_lr")), seeds(runs, study)]
    outcome = runs["outcome"].value_counts()
    if outcome.get("diverged", 0):
        context.append(f"{outcome['diverged']} of {len(runs)} runs diverged")
    if study.unfinished:
        context.append(f"not shown: {study.unfinished} unfinished or failed")
    width = int(fig.get_figwidth() * CHARACTERS)
    second = " · ".join(part for part in [*context, *notes, *study.look.notes] if part)
    lines = [*textwrap.wrap(what, width), *textwrap.wrap(second, width)]
    fig.set_figheight(fig.get_figheight() + 0.16 * (len(lines) - 2) + 0.13 * _title_lines(fig))
    fig.suptitle("\n".join(lines), x=0.01, ha="left", linespacing=1.35)


def legend(fig: Figure, look: Look, runs: pd.DataFrame, extra: Sequence[Artist] = (), *, dashes: bool = True) -> None:
    """One legend below the panels: rows for the colors, the line styles, the rest; one row where all fit.

    It names what these runs have, and the figure grows by its rows.
    """
    blank = Line2D([], [], ls="none", label=" ")
    groups: list[list[Artist]] = [
        [
            Line2D([], [], color=c, lw=style.BOLD, label=f"{look.hue}={n}")
            for n, c in look.colors.items()
            if look.hue and (runs["hue"] == n).any()
        ]
    ]
    if dashes and look.dash is not None:
        groups.append(
            [
                Line2D([], [], color="black", lw=style.BOLD, ls=d, label=f"{look.dash}={n}")
                for n, d in look.dashes.items()
                if (runs["dash"] == n).any()
            ]
        )
    if extra:
        groups.append(list(extra))

    room = fig.get_figwidth() * 16  # characters, a handle taking about six
    widest = max(_cells([a]) for group in groups for a in group)
    per_row = max(2, int(room / widest))
    if sum(_cells(group) for group in groups) <= room:
        rows = [[artist for group in groups for artist in group]]
    else:
        rows = [group[i : i + per_row] for group in groups for i in range(0, len(group), per_row)]
    fig.set_figheight(fig.get_figheight() + 0.15 * (len(rows) - 1))
    columns = max(len(row) for row in rows)
    grid = [row + [blank] * (columns - len(row)) for row in rows]
    # matplotlib fills a legend column by column
    fig.legend(handles=[row[i] for i in range(columns) for row in grid], loc="outside lower center", ncols=columns)


def _cells(artists: Sequence[Artist]) -> int:
    return sum(6 + len(str(a.get_label())) for a in artists)


def outcome_handle(outcome: str) -> Line2D:
    """The legend entry of an outcome's marker."""
    return Line2D([], [], ls="none", marker=style.OUTCOME_MARKERS[outcome], color=style.GREY, label=outcome)


# ---- axes -----------------------------------------------------------------------------------------------


def step_axis(ax: Axes, last: int, *, log: bool) -> None:
    """A step axis; `log` stretches the first updates (log of step + 1) and labels the last one."""
    spec = ax.get_subplotspec()
    narrow = spec is not None and spec.get_gridspec().ncols > 3
    if not log:
        ax.set_xlim(-0.02 * last, 1.02 * last)  # markers at the ends stay whole
        ax.xaxis.set_major_locator(MaxNLocator(4 if narrow else 5, integer=True, steps=[1, 2, 5, 10]))
        return
    ax.set_xscale("function", functions=(_log1p, np.expm1))
    ax.set_xlim(0, max(last, 1))
    ax.xaxis.set_major_locator(FixedLocator(log_ticks(last, 3 if narrow else 2.2)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")


def _log1p(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(np.maximum(x, -0.999)))


def log_ticks(last: int, apart: float) -> list[int]:
    """0, 5, 20, 100, 500, ... and the last step; step + 1 grows at least by the factor `apart`."""
    ticks = [0]
    for step in (1, 5, 20, 100, 500, 2000, 10_000, 50_000, 200_000):
        if step + 1 >= apart * (ticks[-1] + 1) and apart * (step + 1) < last + 1:
            ticks.append(step)
    return [*ticks, last]


def norm_axis(ax: Axes) -> None:
    """A logarithmic y axis; below two decades its ticks are plain numbers, since 2 × 10⁰ is hard to read."""
    ax.set_yscale("log")
    norm_ticks(ax.yaxis)


def norm_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis, that of a color bar too; versions of matplotlib differ in their own choice."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda v, _: f"{v:g}")
    axis.set_minor_formatter(NullFormatter())


def layer_axis(ax: Axes, axis: str, top: int) -> None:
    """Integer ticks for layers 0 to `top`, about eight at most, both ends among them."""
    every = max(1, -(-top // 7))
    ticks = [t for t in range(0, top + 1, every) if t == 0 or top - t >= every * 0.6] + [top]
    (ax.set_xticks if axis == "x" else ax.set_yticks)(sorted(set(ticks)))


# ---- lines over seeds -----------------------------------------------------------------------------------


def seed_mean(table: pd.DataFrame, sizes: dict[tuple[str, str], int], *, log: bool) -> pd.DataFrame:
    """Mean of `value` over the seeds of each (hue, dash), geometric with `log`.

    It exists only where every seed has a value: a mean of the survivors would hide the runs that ended.
    """
    rows = table.assign(value=np.log(table["value"])) if log else table
    mean = rows.groupby(["hue", "dash", "step"], sort=False)["value"].agg(["mean", "size"]).reset_index("step")
    whole = pd.Series(sizes).reindex(mean.index)
    mean = mean[(mean["size"] == whole).to_numpy()].rename(columns={"mean": "value"}).reset_index()
    return mean.assign(value=np.exp(mean["value"])) if log else mean


def last_tenth(mean: pd.DataFrame) -> pd.DataFrame:
    """`value` at each step t as its mean over the steps from 0.9 t to t: the same width all over a log axis.

    The steps are 0, 1, 2, ...
    """
    sums = np.concatenate([[0.0], np.cumsum(mean["value"])])
    ends = np.arange(1, len(mean) + 1)
    width = 1 + (ends - 1) // 10
    return mean.assign(value=(sums[ends] - sums[ends - width]) / width)


def curves(table: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(run_id, steps, values) of each run, by its name; the rows of a run are in order."""
    codes, names = pd.factorize(table["run_id"], sort=True)
    rows = np.argsort(codes, kind="stable")
    steps, values = table["step"].to_numpy()[rows], table["value"].to_numpy()[rows]
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    for name, start, end in zip(names, [0, *ends], ends, strict=False):
        yield str(name), steps[start:end], values[start:end]


def draw_seed_lines(
    ax: Axes,
    table: pd.DataFrame,
    sizes: dict[tuple[str, str], int],
    look: Look,
    *,
    log: bool,
    smooth: bool = False,
) -> None:
    """A thin line per seed and the bold mean over seeds.

    table: columns hue, dash, run_id, step, value; sizes: (hue, dash) -> seeds; log: the mean is geometric;
    smooth: it is taken over the last tenth of the steps as well.
    """
    mean = seed_mean(table, sizes, log=log)
    alpha = 0.4 if look.facet is None else 0.25  # in a small panel noisy seeds would bury their mean
    seeds = dict(iter(table.groupby(["hue", "dash"], sort=False)))
    for hue, dash in sizes:
        color, pattern, name = look.colors[hue], look.dashes[dash], f"{hue}:{dash}"
        for run_id, steps, values in curves(seeds.get((hue, dash), table[:0])):
            # not ax.plot, which for each of a thousand lines looks at units and limits anew
            thin = Line2D(steps, values, color=color, ls=pattern, lw=style.THIN, alpha=alpha, gid=f"seed:{run_id}")
            ax.add_line(thin)
        bold = mean[(mean["hue"] == hue) & (mean["dash"] == dash)].sort_values("step")
        if smooth:
            bold = last_tenth(bold)
        # dashes of lines over one another would close their gaps: a white edge keeps them readable
        ax.plot(bold["step"], bold["value"], color="white", lw=style.BOLD + 1, alpha=0.7, zorder=2.5)
        few = "." if 0 < len(bold) <= 16 else ""  # where the points are sparse, show them
        ax.plot(
            bold["step"], bold["value"], color=color, ls=pattern, lw=style.BOLD, marker=few, ms=5, zorder=3,
            gid=f"mean:{name}",
        )  # fmt: skip


def draw_ends(ax: Axes, ends: pd.DataFrame, look: Look) -> None:
    """The marker of a diverged run at its last finite point; ends: columns hue, run_id, step, value."""
    for run_id, hue, step, value in zip(ends["run_id"], ends["hue"], ends["step"], ends["value"], strict=True):
        ax.plot(
            [step], [value], marker=style.OUTCOME_MARKERS["diverged"], ms=6, ls="none", zorder=5,
            color=look.colors[hue], mec="white", mew=0.6, clip_on=False, gid=f"diverged:{run_id}",
        )  # fmt: skip


def reference_lines(ax: Axes, references: Sequence[tuple[str, float]], *, labelled: bool) -> None:
    """Horizontal lines at known losses, named at the right edge, outside the panel."""
    gap = " " if _is_low(ax) else "\n"  # two lines of a name would run into the next one's
    for name, value in references:
        ax.axhline(value, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid=f"reference:{name}")
        if labelled:
            ax.annotate(
                f"{name}{gap}{value:.2f}", (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=6, color=style.GREY, annotation_clip=False,
            )  # fmt: skip


def entropies(runs: pd.DataFrame) -> list[tuple[str, float]]:
    """The reference losses of a panel's text: uniform, unigram and bigram prediction, in nats per token."""
    first = runs.iloc[0]
    return [
        ("ln(vocab)", float(first["ln_vocab"])),
        ("unigram", float(first["unigram_entropy"])),
        ("bigram", float(first["bigram_entropy"])),
    ]


def _is_low(ax: Axes) -> bool:
    spec = ax.get_subplotspec()
    return spec is not None and spec.get_gridspec().nrows * spec.get_gridspec().ncols > FEW


def same_text(settings: Sequence[Setting]) -> bool:
    """Whether one set of reference labels is right for every panel: the same text in the same tokens."""
    return len({tuple(key) for s in settings for key in s.runs[["data_sha256", "ln_vocab"]].to_numpy()}) == 1


def sizes(arms: Sequence[tuple[str, str, pd.DataFrame]]) -> dict[tuple[str, str], int]:
    """(hue, dash) -> number of runs."""
    return {(hue, dash): len(runs) for hue, dash, runs in arms}


def last_step(runs: pd.DataFrame) -> int:
    """The last recorded step of the longest run."""
    return int(runs["n_steps"].max()) - 1
