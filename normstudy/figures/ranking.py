"""Draw the figure ranking: a row for each value of a text field, such as placement, ranked by final loss."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from normstudy.analysis.grid import phrase
from normstudy.analysis.inference import paired_t_interval
from normstudy.analysis.outcomes import FAILED
from normstudy.analysis.pairs import MIN_PAIRS
from normstudy.figures import layout, series, style
from normstudy.figures.look import MAX_HUES, Look, folded, spread_labels, swept, text_fields, values
from normstudy.figures.study import Lacks, Study, at_most_one, held

MIN_VALUES = 3  # fewer values are compared, not ranked
MAX_COLUMNS = 3
# Heights in inches. ROW: the least height of a row. ARM: the height of an arm's line in a row. AROUND: titles and axes.
ROW, ARM, AROUND = 0.25, 0.13, 1.5
COUNT_WIDTH = 20  # width in points of a column of counts on the right of a panel
BEYOND = 0.25  # intervals extend each end of the loss axis by at most this fraction of the range of losses
FEW_SEEDS = "*"


class Cell(NamedTuple):
    """The runs with the same row, depth (`column`) and color (`arm`), with counts of runs and the mean final loss.

    mean, low, high: the mean final loss and its 95 % t interval. They are NaN if a run failed: a t interval
    assumes one normal distribution, which failed and other runs do not share.
    """

    row: str
    column: str
    arm: str
    runs: pd.DataFrame
    n: int
    learned: int
    diverged: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """A ranking of the values of a field, such as placement.

    rows: the ranked values, best first. columns: the depths, each with a panel. arm_field: the field that colors show.
    Its values are called arms. runs: the ranked runs, with the text columns row, column and arm. rule: how rows are
    ranked.
    """

    field: str
    arm_field: str | None
    runs: pd.DataFrame
    rows: list[str]
    columns: list[str]
    colors: dict[str, str]
    rule: str
    notes: list[str]

    @cached_property
    def cells(self) -> list[Cell]:
        """Return the results for each combination of row, column (depth) and arm (color) that has runs."""
        out = []
        parts = dict(iter(self.runs.groupby(["row", "column", "arm"])))
        for key in [k for k in itertools.product(self.rows, self.columns, self.colors) if k in parts]:
            outcome, losses = parts[key]["outcome"], parts[key]["final_val_loss"].to_numpy(np.float64)
            counts = (len(losses), int((outcome == "learned").sum()), int((outcome == "diverged").sum()))
            interval = (math.nan,) * 3 if outcome.isin(FAILED).any() else paired_t_interval(losses)
            out.append(Cell(*key, parts[key], *counts, *interval))
        return out


def ranked_field(study: Study) -> str:
    """Return the field to rank: the facet, or else the text field with the most values. It needs MIN_VALUES values."""
    if study.look.facet is not None:
        return study.look.facet
    counts = text_fields(study.finished)
    best = max(counts, key=lambda c: (counts[c], c == "placement"), default="")
    if counts.get(best, 0) < MIN_VALUES:
        raise Lacks(f"it needs a text field, such as placement, with at least {MIN_VALUES} values")
    return best


def rank(study: Study, *, deepest: bool = False) -> Ranking:
    """Rank a field's values by their runs in the hardest setting: the largest depth with the least warmup.

    Values with fewer failed runs come first. With equally many failed runs, the value whose other runs have the
    smaller mean final loss comes first. Equal means keep the config's order. Values without a run in the hardest
    setting come last. Fields that the figure does not show are fixed at one value. deepest: return no other depths.
    """
    runs = study.finished
    field = ranked_field(study)
    if deepest:
        runs = runs[runs["n_layers"] == runs["n_layers"].max()]
    rest = [c for c in text_fields(runs) if c != field]
    arm_field = "warmup_steps" if "warmup_steps" in swept(runs) else next(iter(rest), None)
    fixed = [c for c in swept(runs) if c not in (field, arm_field, "n_layers")]
    runs = at_most_one(runs, fixed, field)
    notes = held(study, runs, fixed)

    def shown(column: str, limit: int) -> list[str]:
        return spread_labels(runs, column, limit, study.names, notes)

    def texts(column: str) -> list[str]:
        return [study.text(column, v) for v in runs[column]]

    columns = shown("n_layers", MAX_COLUMNS)
    arms = [""] if arm_field is None else shown(arm_field, MAX_HUES - 1)
    everyone = shown(field, len(study.finished))
    if (left := len(values(study.finished, field)) - len(everyone)) > 0:
        notes.append(f"not shown: {left} values of {field} without a run at the fixed settings")
    runs = runs.assign(row=texts(field), column=texts("n_layers"), arm="" if arm_field is None else texts(arm_field))
    runs = runs[runs["column"].isin(columns) & runs["arm"].isin(arms)].reset_index(drop=True)
    hardest = runs[(runs["column"] == columns[-1]) & (runs["arm"] == arms[0])]
    gone = hardest["outcome"].isin(FAILED)
    failed = gone.groupby(hardest["row"]).sum()
    mean = hardest[~gone].groupby("row")["final_val_loss"].mean()
    where = [f"n_layers={columns[-1]}"] * (len(columns) > 1) + [f"{arm_field}={arms[0]}"] * (arm_field is not None)
    return Ranking(
        field=field, arm_field=arm_field, runs=runs, columns=columns, notes=notes,
        rows=sorted(everyone, key=lambda row: (failed.get(row, np.inf), mean.get(row, np.inf))),
        colors=dict(zip(arms, style.shades(len(arms), style.ARMS), strict=True)),
        rule="ranked by failed runs, then by the mean" + (f" at {', '.join(where)}" if where else ""),
    )  # fmt: skip


def places(ranking: Ranking) -> dict[tuple[str, str], float]:
    """Map (row, arm) to a y position. Row `i` is centered at y = `i`. The arms (colors) of a row are stacked."""
    n, keys = len(ranking.colors), itertools.product(ranking.rows, ranking.colors)
    return {key: i // n + 0.92 / n * (i % n - (n - 1) / 2) for i, key in enumerate(keys)}


def stripe_rows(ax: Axes, ranking: Ranking) -> None:
    """Write the rows' names, the best on top, and shade every second row."""
    for i in range(0, len(ranking.rows), 2):
        ax.axhspan(i - 0.5, i + 0.5, color="#F3F3F3", lw=0, zorder=0)
    ax.set_ylim(len(ranking.rows) - 0.5, -0.5)
    ax.set_yticks(range(len(ranking.rows)), [folded(row) for row in ranking.rows])
    ax.tick_params(axis="y", length=0)


def draw_ranking(ax: Axes, ranking: Ranking, column: str, edge: float) -> None:
    """Draw the panel of one depth (`column`): runs, mean losses, intervals, and counts of learned and diverged runs.

    Diverged runs are drawn side by side around x = `edge`. If an interval extends beyond the axis, an arrow is drawn.
    """
    stripe_rows(ax, ranking)
    at = places(ranking)
    left, right = ax.get_xlim()
    cells, heads = [cell for cell in ranking.cells if cell.column == column], ("learned", "diverged")
    for cell in cells:
        name, y, color = f"{cell.row}:{cell.arm}", at[cell.row, cell.arm], ranking.colors[cell.arm]
        gone = (cell.runs["outcome"] == "diverged").to_numpy()
        losses = cell.runs["final_val_loss"].to_numpy(np.float64, copy=True)
        losses[gone] = edge + 0.02 * (right - left) * (np.arange(cell.diverged) - (cell.diverged - 1) / 2)
        for run_id, outcome, loss in zip(cell.runs["run_id"], cell.runs["outcome"], losses, strict=True):
            ax.plot(
                [loss], [y], ls="none", marker=style.OUTCOME_MARKERS[outcome], color=color, mec="white", mew=0.3,
                ms=5 if outcome == "diverged" else 3.4, alpha=0.7, zorder=2, gid=f"{outcome}:{run_id}",
            )  # fmt: skip
        ax.plot([cell.low, cell.high], [y, y], color=color, lw=1.1, zorder=3, gid=f"interval:{name}")
        ax.plot([cell.mean], [y], ls="none", marker="|", ms=7, mew=1.6, color=color, zorder=4, gid=f"mean:{name}")
        for x, marker, beyond in [(left, "<", cell.low < left), (right, ">", cell.high > right)]:
            if beyond:
                ax.plot([x], [y], marker=marker, color=color, ms=3.5, clip_on=False, zorder=4, gid=f"beyond:{name}")
        few = FEW_SEEDS if cell.n < MIN_PAIRS else ""
        counts = [f"{cell.learned}/{cell.n}{few}"] + [f"{cell.diverged}"] * (cell.diverged > 0)
        for place, (kind, text) in enumerate(zip(heads, counts, strict=False)):
            ax.annotate(
                text, (1, y), xycoords=("axes fraction", "data"), xytext=(6 + COUNT_WIDTH * place, 0), va="center",
                textcoords="offset points", fontsize=5.5, color=color, annotation_clip=False, gid=f"{kind}:{name}",
            )  # fmt: skip
    for place, name in enumerate(heads[: 2 if any(cell.diverged for cell in cells) else 1]):
        ax.annotate(
            name, (1, 1), xycoords="axes fraction", xytext=(8 + COUNT_WIDTH * place, 2), textcoords="offset points",
            fontsize=5.5, color=style.GREY, rotation=40, rotation_mode="anchor", gid=f"head:{name}",
        )  # fmt: skip


def draw_references(ax: Axes, references: list[tuple[str, float]]) -> None:
    """Draw a vertical line at each reference loss, and write the name and the loss above the panel."""
    left, right = ax.get_xlim()
    for name, value in references:
        ax.axvline(value, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid=f"reference:{name}")
        ax.annotate(
            f"{name} {value:.2f}", (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="right" if value > right - 0.2 * (right - left) else "center",
            fontsize=5.5, color=style.GREY,
        )  # fmt: skip


def loss_axis(axes: list[Axes], ranking: Ranking) -> float:
    """Fit the loss axes to all final losses and the uni- and bigram entropy. Return the x position of diverged runs."""
    references = [r for r in series.entropies(ranking.runs) if r[0] != "ln(vocab)"]
    diverged = ranking.runs["outcome"] == "diverged"
    ended = [float(v) for v in ranking.runs.loc[~diverged, "final_val_loss"]] + [v for _, v in references]
    low, high = min(ended), max(ended)
    # With few seeds, intervals can be far wider than the range of losses. BEYOND limits how far they extend the axis.
    reach = [v for cell in ranking.cells for v in (cell.low, cell.high) if math.isfinite(v)]
    room = BEYOND * (high - low)
    low, high = max(low - room, min([low, *reach])), min(high + room, max([high, *reach]))
    margin = 0.04 * (high - low)
    edge = high + 2.5 * margin
    for ax in axes:
        ax.set_xlim(low - margin, edge + 1.5 * margin if diverged.any() else high + margin)
        draw_references(ax, references)
        ax.set_xlabel("final validation loss, nats per token")
    return edge


def finish(fig: FigureBase, study: Study, ranking: Ranking, what: str, notes: Sequence[str] = ()) -> None:
    """Write the title and a legend of colors and outcomes. The title says how rows are ranked and what marks mean."""
    marks = {
        "right edge: diverged": any(cell.diverged for cell in ranking.cells),
        "no mean where a run failed": any(math.isnan(cell.mean) for cell in ranking.cells),
        f"{FEW_SEEDS}: fewer than {MIN_PAIRS} seeds": any(cell.n < MIN_PAIRS for cell in ranking.cells),
    }
    notes = [ranking.rule, *ranking.notes, *(mark for mark, is_used in marks.items() if is_used), *notes]
    layout.title(fig, study, what, ranking.runs, notes)
    look = Look(ranking.arm_field or "", None, ranking.colors if ranking.arm_field else {}, {"": "-"})
    runs = ranking.runs.assign(hue=ranking.runs["arm"])
    layout.legend(fig, study.paper, look, runs, layout.outcome_handles(runs))


def height(ranking: Ranking) -> float:
    """Return the figure's height in inches."""
    return max(ROW, ARM * len(ranking.colors)) * len(ranking.rows) + AROUND


def ranking(study: Study) -> FigureBase:
    """Draw a ranking with a row for each value of the ranked field and a panel for each depth."""
    order = rank(study)
    n = len(order.columns)
    across = study.paper.fit(n)
    down = -(-n // across)
    fig = study.paper.new(height(order) * down, 1.0 if n > 1 else 0.62)
    axes: list[Axes] = list(fig.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for spare in axes[n:]:
        spare.remove()
    edge = loss_axis(axes[:n], order)
    for ax, column in zip(axes, order.columns, strict=False):
        draw_ranking(ax, order, column, edge)
        if n > 1:
            ax.set_title(phrase("n_layers", column), loc="left", pad=14)
    what = f"Final validation loss by {order.field}, the best on top; markers: seeds, bars: mean and 95 % t interval"
    finish(fig, study, order, what)
    return fig
