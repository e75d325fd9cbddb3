"""What the figures know of a study: its finished runs, which fields it swept, and how each field is drawn.

One text field is drawn as color (`hue`), one field as line style (`dash`); the others make panels. A text field with
more values than an axes can hold colors (`facet`) makes panels too, one per value, and the color is then the depth's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from normstudy import config as cfg
from normstudy.analysis.grid import Value
from normstudy.analysis.outcomes import outcomes
from normstudy.analysis.select import has_value, native, select, tell_sources_apart
from normstudy.config import ConfigError
from normstudy.figures import style
from normstudy.study import tables

HEADLINE_LR = 3e-3  # of several rates, the one nearest to this is shown where only one can be
SNAPSHOTS = (0, 5, 20, 100)  # and the last step
MAX_HUES = 6  # colors in one axes
MAX_FACETS = 24  # panels of a field that has more values than that
NAME_WIDTH = 24  # characters above a panel in a row of four
MODULE = "mlp_out"  # the FFN output matrix: the theory's quantity (Xiong et al. 2002.04745, Theorem 1)

# Losses on different texts, or in other tokens, have no scale in common: no axes mixes the values of these.

# Asked columns that are not a treatment: what repeats or permits a run, how it was recorded, where its text lies.
_NOT_SWEPT = ("study", "seed", "data_seed", "data_path", "force_init")
_NOT_SWEPT_PREFIXES = ("probe_", "eval_")
# What the figures read of `runs` beside the fields that vary. Rows are chosen hundreds of times, each time of every
# column: with all ninety that took a quarter of the figures' time.
_READ = (
    "run_id", "seed", "placement", "n_layers", "peak_lr", "warmup_steps", "n_steps", "final_val_loss", "outcome",
    "data_sha256", "ln_vocab", "unigram_entropy", "bigram_entropy",
)  # fmt: skip
_NAMES = {
    "placement": cfg.PLACEMENT_NAMES,
    "norm": (*cfg.NORM_NAMES, "auto"),
    "init": ("auto", *cfg.INIT_NAMES),
    "optimizer": cfg.OPTIMIZER_NAMES,
    "schedule": cfg.SCHEDULE_NAMES,
}


class Lacks(Exception):
    """A figure that a study cannot give; its text says what is lacking."""


def number(value: float) -> str:
    """A number as people type it: 6, 0.98, 3e-3."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 0.1 <= abs(value) < 1e4:
        return f"{value:.6g}"
    mantissa, _, exponent = cfg.short_float(value).partition("e")
    return f"{mantissa}e{int(exponent)}"


def label(value: object) -> str:
    """A config value as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return number(value) if isinstance(value, int | float) else str(value)


def folded(name: str, width: int = NAME_WIDTH) -> str:
    """A long name, such as that of a user's own block, in lines of at most `width` characters, two at most."""
    if len(name) <= width:
        return name
    ends = [i + 1 for i, c in enumerate(name[:width]) if c in ":._- "]
    cut = ends[-1] if ends else width
    rest = name[cut:].strip()
    return f"{name[:cut].strip()}\n{rest if len(rest) <= width else '…' + rest[1 - width :]}"


def values(runs: pd.DataFrame, column: str) -> list[Value]:
    """The values of a config column in order: as in config.py's tuples, by size, by name; null first."""
    found = list({native(column, v) for v in runs[column].unique()})
    order = {name: i for i, name in enumerate(_NAMES.get(column, ()))}

    def key(value: Value) -> tuple[bool, float, str]:
        if value is None or isinstance(value, bool | int | float):
            return value is not None, float(value or 0), ""
        return True, order.get(str(value), len(order)), str(value)

    return sorted(found, key=key)


def short_names(runs: pd.DataFrame) -> dict[str, str]:
    """Value -> label of each placement and norm of a user's own (`package.module:function`): the function's name.

    One whose name another value or a shipped one has keeps its full text.
    """
    out: dict[str, str] = {}
    for column in ("placement", "norm"):
        found = [str(v) for v in values(runs, column)] if column in runs else []
        tails = [v.rpartition(":")[2] for v in found]
        taken = {*_NAMES[column], *(t for t in tails if tails.count(t) > 1)}
        out |= {v: t for v, t in zip(found, tails, strict=True) if ":" in v and t not in taken}
    return out


def swept(runs: pd.DataFrame) -> list[str]:
    """The config columns that take more than one value, in the order of the configuration.

    Runs on different texts are never mixed, so `data_sha256` counts where `data` and its seed do not tell
    the texts apart.
    """
    asked = [c for c in cfg.asked_types() if c not in _NOT_SWEPT and not c.startswith(_NOT_SWEPT_PREFIXES)]
    found = [c for c in asked if c in runs and varies(runs, c)]
    told = [c for c in cfg.TEXT_COLUMNS if c in found]
    parts = [part for _, part in runs.groupby(told, dropna=False)] if told else [runs]
    return [*found, "data_sha256"] if any(varies(part, "data_sha256") for part in parts) else found


def varies(runs: pd.DataFrame, column: str) -> bool:
    """Whether a column has two or more values; null is one."""
    return len(runs[column].unique()) > 1


def spread(found: Sequence[Value], limit: int, column: str) -> list[Value]:
    """At most `limit` of some ordered values, evenly spread with both ends, and the headline's rate."""
    if len(found) <= limit:
        return list(found)
    if limit == 1:
        return [chosen(found, column)]
    picked = [round(i * (len(found) - 1) / (limit - 1)) for i in range(limit)]
    if column == "peak_lr" and limit > 2:
        best = found.index(chosen(found, column))
        if best not in picked:
            inner = min(range(1, limit - 1), key=lambda i: abs(picked[i] - best))
            picked[inner] = best
    return [found[i] for i in sorted(picked)]


def chosen(found: Sequence[Value], column: str) -> Value:
    """The one value to show: the rate nearest to the headline's, else the last (the deepest, the widest)."""
    if column != "peak_lr":
        return found[-1]
    rates = [(abs(math.log(v / HEADLINE_LR)), i) for i, v in enumerate(found) if isinstance(v, int | float)]
    return found[min(rates)[1]]


@dataclass(frozen=True)
class Look:
    """Which field is drawn as color and which as line style, how each value looks, and which field makes panels.

    hue: empty where one color stands for all; facet: a text field with more than MAX_HUES values, or None.
    """

    hue: str
    dash: str | None
    colors: dict[str, str]
    dashes: dict[str, style.LineStyle]
    notes: tuple[str, ...] = ()
    facet: str | None = None

    @property
    def by(self) -> str:
        """What the lines are told apart by, for titles."""
        told = [self.hue] if self.dash is None else [self.hue, self.dash]
        if self.facet is None:
            return " and ".join(told)
        if len(self.colors) == 1:
            told.remove(self.hue)
        return " per ".join([" and ".join(told)] * bool(told) + [self.facet])


def text_fields(runs: pd.DataFrame) -> dict[str, int]:
    """Field -> number of values of each text field that varies, in the order of the configuration."""
    kinds = cfg.asked_types()
    return {c: len(values(runs, c)) for c in swept(runs) if kinds.get(c) is str and c not in cfg.TEXT_COLUMNS}


def look(runs: pd.DataFrame, names: Mapping[str, str] | None = None) -> Look:
    """Color for the placement, else for another text field that varies; line style for the warmup.

    A text field with more than MAX_HUES values has neither: the placement, else the one with most values, makes
    panels, and where no text field is left the color is the depth's. names: as of `short_names`.
    """
    text = text_fields(runs)
    many = {c: n for c, n in text.items() if n > MAX_HUES}
    facet = "placement" if "placement" in many else max(many, key=lambda c: many[c], default=None)
    few = [c for c in text if c not in many]
    hue = "placement" if "placement" in few or not few else few[0]
    if facet is not None and not few:
        hue = "n_layers"
    rest = [c for c in few if c != hue]
    dash = "warmup_steps" if "warmup_steps" in swept(runs) else (rest[0] if rest else None)

    notes = []

    def shown(column: str, limit: int) -> list[str]:
        found = values(runs, column)
        picked = spread(found, limit, column)
        if len(picked) < len(found):
            notes.append(f"{len(picked)} of {len(found)} values of {column} shown")
        return [(names or {}).get(label(v), label(v)) for v in picked]

    hues = shown(hue, MAX_HUES)
    dashes = [] if dash is None else shown(dash, len(style.DASHES))
    return Look(
        hue=hue,
        dash=dash,
        colors=_colors(hue, hues),
        dashes=dict(zip(dashes, style.DASHES, strict=False)) if dash else {"": "-"},
        notes=tuple(notes),
        facet=facet,
    )


def _colors(hue: str, names: list[str]) -> dict[str, str]:
    """A color per value. A shipped name keeps its color whatever else a study holds; others get free ones.

    Depths get shades, the deepest the darkest.
    """
    if hue == "n_layers":
        return dict(zip(names, reversed(style.shades(len(names), style.ORDERED)), strict=True))
    fixed = style.PLACEMENT_COLORS if hue == "placement" else {}
    shipped = [n for n in _NAMES.get(hue, ()) if n not in fixed]
    colors = fixed | dict(zip(shipped, style.OTHER_COLORS, strict=False))
    used = {colors[n] for n in names if n in colors}
    pool = dict.fromkeys((*style.OTHER_COLORS, *style.OWN_COLORS, *style.PLACEMENT_COLORS.values()))
    free = [c for c in pool if c not in used]
    free.sort(key=lambda c: c in colors.values())  # a shipped name's color only where no other is left
    return {n: colors[n] if n in colors else free.pop(0) for n in names}


@dataclass(frozen=True)
class Setting:
    """The runs of one panel and what they share."""

    title: str
    runs: pd.DataFrame


@dataclass(frozen=True)
class Study:
    """The finished runs of a study, with `outcome`, `hue` and `dash` columns, and their series.

    runs: those that have a color and a line style; finished: all of them; names: as of `short_names`.
    """

    folder: Path
    runs: pd.DataFrame
    steps: pd.DataFrame
    look: Look
    finished: pd.DataFrame
    unfinished: int = 0
    panel_fields: tuple[str, ...] = field(default=())
    names: Mapping[str, str] = field(default_factory=dict)

    def text(self, column: str, value: object) -> str:
        """A value of a config column as it stands in a figure."""
        words = label(value)
        return words[:8] if column == "data_sha256" else self.names.get(words, words)

    @cached_property
    def train_losses(self) -> pd.DataFrame:
        """run_id, step, value: the finite training losses, by run and step."""
        return self._finite("train_loss")

    @cached_property
    def val_losses(self) -> pd.DataFrame:
        """run_id, step, value: the finite validation losses, by run and step."""
        return self._finite("val_loss")

    def _finite(self, column: str) -> pd.DataFrame:
        rows: pd.DataFrame = self.steps.loc[np.isfinite(self.steps[column]), ["run_id", "step", column]]
        return rows.rename(columns={column: "value"})

    @cached_property
    def modules(self) -> pd.DataFrame:
        """The gradient norms per layer of `MODULE`, layers as integers."""
        columns = ["run_id", "step", "layer", "grad_norm"]
        rows = tables.read(self.folder, "modules", columns, list(self.runs["run_id"]), MODULE, text=False)
        return rows.astype({"layer": int, "grad_norm": float})

    @cached_property
    def residual(self) -> pd.DataFrame:
        """The norms of dLoss/dx_l."""
        columns = ["run_id", "step", "layer", "grad_norm"]
        rows = tables.read(self.folder, "residual", columns, list(self.runs["run_id"]), text=False)
        return rows.astype({"layer": int, "grad_norm": float})

    def settings(self, runs: pd.DataFrame, limit: int, skip: Iterable[str] = ()) -> tuple[list[Setting], list[str]]:
        """Split runs into at most `limit` panels over the fields that are neither color nor line style.

        With a facet there is a panel for each of its values, MAX_FACETS at most, and the other fields are held.
        Returns the panels and notes on what was left out.
        """
        fields = [c for c in self.panel_fields if c not in set(skip) and varies(runs, c)]
        if not fields:
            return [Setting("", runs)], []
        facet, notes = self.look.facet, list[str]()
        everywhere = len(values(runs, facet)) if facet in fields else 0
        if facet in fields:
            few = at_most_one(self, runs, skip=(facet, *skip))
            notes = held(self, few, [c for c in fields if c != facet])
            runs, fields, limit = few, [facet], MAX_FACETS
        rows = runs[fields].to_numpy(object)
        keys = pd.Series([tuple(map(native, fields, row)) for row in rows], runs.index)
        kept = {c: values(runs, c) for c in fields}
        everything = {c: list(v) for c, v in kept.items()}

        def combinations() -> list[tuple[Value, ...]]:
            found = set(keys)
            return [k for k in found if all(v in kept[c] for v, c in zip(k, fields, strict=True))]

        total = max(everywhere, len(combinations()))
        while len(combinations()) > limit:
            most = max(fields, key=lambda c: len(kept[c]))
            if len(kept[most]) == 1:
                break
            kept[most] = spread(everything[most], len(kept[most]) - 1, most)
        order = {c: {v: i for i, v in enumerate(everything[c])} for c in fields}
        picked = sorted(combinations(), key=lambda k: [order[c][v] for c, v in zip(fields, k, strict=True)])
        if len(picked) < total:
            notes.append(f"{len(picked)} of {total} panels shown")

        def title(key: tuple[Value, ...]) -> str:
            if facet in fields:  # the figure's title names the field, and a small panel has no room
                return folded(self.text(fields[0], key[0]))
            return ", ".join(f"{c}={self.text(c, v)}" for c, v in zip(fields, key, strict=True))

        return [Setting(title(k), runs[keys == k]) for k in picked], notes

    def at_headline(self) -> pd.DataFrame:
        """The runs at the largest depth and at the rate nearest to the headline's."""
        runs = self.runs
        for column in ("n_layers", "peak_lr"):
            if column in (*self.panel_fields, self.look.hue):
                runs = runs[runs[column] == chosen(values(runs, column), column)]
        return runs


def widest(runs: pd.DataFrame, column: str, field: str) -> list[Value]:
    """Those values of a column under which most values of `field` have runs."""
    count = {v: len(values(runs[has_value(runs, column, v)], field)) for v in values(runs, column)}
    return [v for v, n in count.items() if n == max(count.values())]


def at_most_one(study: Study, runs: pd.DataFrame, skip: Iterable[str] = ()) -> pd.DataFrame:
    """The runs at one value of each field that is neither color nor line style, `skip` excepted."""
    facet = study.look.facet
    for column in [c for c in study.panel_fields if c not in set(skip)]:
        found = values(runs, column) if facet is None else widest(runs, column, facet)
        if len(found) > 1 or facet is not None:
            runs = runs[has_value(runs, column, chosen(found, column))]
    return runs


def held(study: Study, runs: pd.DataFrame, fields: Iterable[str] | None = None) -> list[str]:
    """Notes that name the value of each swept field, beside depth and rate, that a figure holds fixed."""
    fields = study.panel_fields if fields is None else fields
    fixed = [c for c in fields if c not in ("n_layers", "peak_lr")]
    return [f"{c}={study.text(c, native(c, runs[c].iloc[0]))}" for c in fixed]


def arms(runs: pd.DataFrame, study: Study) -> list[tuple[str, str, pd.DataFrame]]:
    """(hue, dash, runs) for each color and line style that has runs, in the order of the legend."""
    out = []
    for hue in study.look.colors:
        for dash in study.look.dashes:
            part = runs[(runs["hue"] == hue) & (runs["dash"] == dash)]
            if len(part):
                out.append((hue, dash, part))
    return out


def load(study_dir: Path, where: dict[str, str] | None = None) -> Study:
    """Read a study; raises ConfigError where there is no study or no finished run."""
    runs = tell_sources_apart(tables.read(study_dir, "runs"))
    if where:
        runs = select(runs, where)
    done = runs[runs["status"] == "done"].reset_index(drop=True)
    if done.empty:
        held = runs["status"].value_counts()
        states = ", ".join(f"{n} {status}" for status, n in sorted(held.items())) or "none at all"
        raise ConfigError(f"{study_dir} holds no finished run ({states}): run its sweep to the end first")
    columns = ["run_id", "step", "train_loss", "val_loss"]
    steps = tables.read(study_dir, "steps", columns, list(done["run_id"]), text=False)
    names = short_names(done)
    how = look(done, names)

    def texts(column: str) -> list[str]:
        found = [label(native(column, v)) for v in done[column]]
        return [names.get(v, v) for v in found]

    done["outcome"] = outcomes(done, steps).reindex(done["run_id"]).to_numpy()
    fields = swept(done)
    done = done[[c for c in done if c in {*_READ, how.hue, how.dash, *fields}]].copy()
    done["hue"] = texts(how.hue)
    done["dash"] = "" if how.dash is None else texts(how.dash)
    return Study(
        folder=study_dir,
        runs=done[done["hue"].isin(how.colors) & done["dash"].isin(how.dashes)].reset_index(drop=True),
        steps=steps.astype({"train_loss": float, "val_loss": float}),
        look=how,
        finished=done,
        unfinished=len(runs) - len(done),
        panel_fields=tuple(c for c in fields if c not in (how.hue, how.dash)),
        names=names,
    )


# ---- series ---------------------------------------------------------------------------------------------


def of_runs(rows: pd.DataFrame, runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The rows of a series that are these runs', in order, with columns of theirs.

    An inner merge on `run_id`, which where that is categories looks each run up once and not each row.
    """
    codes, names = pd.factorize(rows["run_id"])
    place = pd.Index(runs["run_id"]).get_indexer(names)[codes]
    mine = place >= 0
    found = {c: runs[c].array[place[mine]] for c in columns}
    out: pd.DataFrame = rows[mine].assign(**found)
    return out.reset_index(drop=True)


def geometric(rows: pd.DataFrame, keys: list[str], column: str = "grad_norm") -> pd.DataFrame:
    """Geometric mean (`mid`), `low`, `high` and `n` over runs; an exact zero or a non-finite value has no
    place on a log axis and is left out."""
    good = rows[np.isfinite(rows[column]) & (rows[column] > 0)]
    logs = good.assign(log=np.log(good[column])).groupby(keys, sort=True)
    out: pd.DataFrame = logs.agg(log=("log", "mean"), low=(column, "min"), high=(column, "max"), n=(column, "size"))
    return out.assign(mid=np.exp(out["log"])).drop(columns="log").reset_index()


def zeros(study: Study, rows: pd.DataFrame) -> list[str]:
    """A note that names the runs and steps with a gradient of exactly 0, which has no place on a log axis."""
    gone = rows[rows["grad_norm"] == 0]
    if gone.empty:
        return []
    column = study.look.facet or study.look.hue
    runs = study.runs[study.runs["run_id"].isin(gone["run_id"])]
    names = [study.text(column, v) for v in values(runs, column)]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [f"a gradient of exactly 0 is not drawn ({', '.join(names[:4])}{more}: step {_span(gone['step'])})"]


def snapshots(rows: pd.DataFrame, n_steps: int) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) at init, after 5, 20 and 100 updates and at the end.

    Each run gives its recorded step nearest at or below the wanted one; a run that ended before gives none,
    but every run has an end.
    """
    ends = last_of_run(rows)
    out: list[tuple[str, pd.DataFrame]] = []
    for wanted in [s for s in SNAPSHOTS if s < n_steps - 1]:
        below = rows[(rows["step"] <= wanted) & (ends >= wanted)]
        at = below[below["step"] == last_of_run(below)]
        if len(at) and not (out and set(at["step"]) == set(out[-1][1]["step"])):
            out.append((f"step {_span(at['step'])}" + (" (init)" if wanted == 0 else ""), at))
    finite = rows[np.isfinite(rows["grad_norm"])]
    last = finite[finite["step"] == last_of_run(finite)]
    if len(last):
        out.append((f"step {_span(last['step'])} (end)", last))
    return out


def last_of_run(rows: pd.DataFrame) -> pd.Series[int]:
    """Row by row, the last step that its run has among the rows."""
    return rows.groupby("run_id", observed=True)["step"].transform("max")


def _span(steps: pd.Series[int]) -> str:
    low, high = int(steps.min()), int(steps.max())
    return str(low) if low == high else f"{low}–{high}"
