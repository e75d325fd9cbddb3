"""What the figures know of a study: its finished runs, which fields it swept, and how each field is drawn.

One text field is drawn as color (`hue`), one field as line style (`dash`); the others make panels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from normstudy import config as cfg
from normstudy import store
from normstudy.analysis.outcomes import outcomes
from normstudy.analysis.select import native, select
from normstudy.config import ConfigError
from normstudy.figures import style

HEADLINE_LR = 3e-3  # of several rates, the one nearest to this is shown where only one can be
SNAPSHOTS = (0, 5, 20, 100)  # and the last step
MODULE = "mlp_out"  # the FFN output matrix: the theory's quantity (Xiong et al. 2002.04745, Theorem 1)

# Asked columns that are not a treatment: what repeats a run, how it was recorded, where its text lies.
_NOT_SWEPT = ("study", "seed", "data_seed", "data_path")
_NOT_SWEPT_PREFIXES = ("probe_", "eval_")
_NAMES = {
    "placement": cfg.PLACEMENT_NAMES,
    "norm": cfg.NORM_NAMES,
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


def values(runs: pd.DataFrame, column: str) -> list[object]:
    """The values of a config column in order: as in config.py's tuples, by size, by name; null first."""
    found = list({native(column, v) for v in runs[column].unique()})
    order = {name: i for i, name in enumerate(_NAMES.get(column, ()))}

    def key(value: object) -> tuple[bool, float, str]:
        if value is None or isinstance(value, bool | int | float):
            return value is not None, float(value or 0), ""
        return True, order.get(str(value), len(order)), str(value)

    return sorted(found, key=key)


def swept(runs: pd.DataFrame) -> list[str]:
    """The config columns that take more than one value, in the order of the configuration.

    Runs on different texts are never mixed, so `data_sha256` counts where `data` and its seed do not tell
    the texts apart.
    """
    asked = [c for c in cfg.asked_types() if c not in _NOT_SWEPT and not c.startswith(_NOT_SWEPT_PREFIXES)]
    found = [c for c in asked if c in runs and varies(runs, c)]
    told = [c for c in ("data", "source_seed") if c in found]
    parts = [part for _, part in runs.groupby(told, dropna=False)] if told else [runs]
    return [*found, "data_sha256"] if any(varies(part, "data_sha256") for part in parts) else found


def varies(runs: pd.DataFrame, column: str) -> bool:
    """Whether a column has two or more values; null is one."""
    return len(runs[column].unique()) > 1


def spread(found: Sequence[object], limit: int, column: str) -> list[object]:
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


def chosen(found: Sequence[object], column: str) -> object:
    """The one value to show: the rate nearest to the headline's, else the last (the deepest, the widest)."""
    if column != "peak_lr":
        return found[-1]
    rates = [(abs(math.log(v / HEADLINE_LR)), i) for i, v in enumerate(found) if isinstance(v, int | float)]
    return found[min(rates)[1]]


@dataclass(frozen=True)
class Look:
    """Which field is drawn as color and which as line style, and how each value looks."""

    hue: str
    dash: str | None
    colors: dict[str, str]
    dashes: dict[str, style.LineStyle]
    notes: tuple[str, ...] = ()

    @property
    def by(self) -> str:
        """What the lines are told apart by, for titles."""
        return " and ".join([self.hue] if self.dash is None else [self.hue, self.dash])


def look(runs: pd.DataFrame) -> Look:
    """Color for the placement, else for another text field that varies; line style for the warmup."""
    varying = swept(runs)
    text = [c for c in varying if cfg.asked_types().get(c) is str and c != "data"]
    hue = "placement" if "placement" in text or not text else text[0]
    rest = [c for c in text if c != hue]
    dash = "warmup_steps" if "warmup_steps" in varying else (rest[0] if rest else None)

    hues = [label(v) for v in values(runs, hue)]
    dashes = [] if dash is None else values(runs, dash)
    few = spread(dashes, len(style.DASHES), dash or "")
    notes = []
    if len(few) < len(dashes):
        notes.append(f"{len(few)} of {len(dashes)} values of {dash} shown")
    if len(hues) > len(style.PLACEMENT_COLORS) + len(style.OTHER_COLORS):
        hues = hues[: len(style.PLACEMENT_COLORS) + len(style.OTHER_COLORS)]
        notes.append(f"the first {len(hues)} values of {hue} shown")
    return Look(
        hue=hue,
        dash=dash,
        colors=_colors(hue, hues),
        dashes=dict(zip([label(v) for v in few], style.DASHES, strict=False)) if dash else {"": "-"},
        notes=tuple(notes),
    )


def _colors(hue: str, names: list[str]) -> dict[str, str]:
    """A color per value. A shipped name keeps its color whatever else a study holds; others get free ones."""
    fixed = style.PLACEMENT_COLORS if hue == "placement" else {}
    shipped = [n for n in _NAMES.get(hue, ()) if n not in fixed]
    colors = fixed | dict(zip(shipped, style.OTHER_COLORS, strict=False))
    used = {colors[n] for n in names if n in colors}
    free = [c for c in (*style.OTHER_COLORS, *style.PLACEMENT_COLORS.values()) if c not in used]
    free.sort(key=lambda c: c in colors.values())  # a shipped name's color only where no other is left
    return {n: colors[n] if n in colors else free.pop(0) for n in names}


@dataclass(frozen=True)
class Setting:
    """The runs of one panel and what they share."""

    title: str
    runs: pd.DataFrame


@dataclass(frozen=True)
class Study:
    """The finished runs of a study, with `outcome`, `hue` and `dash` columns, and their series."""

    folder: Path
    runs: pd.DataFrame
    steps: pd.DataFrame
    look: Look
    unfinished: int = 0
    panel_fields: tuple[str, ...] = field(default=())

    @cached_property
    def modules(self) -> pd.DataFrame:
        """The gradient norms per layer of `MODULE`, layers as integers."""
        columns = ["run_id", "step", "layer", "module", "grad_norm"]
        rows = store.read(self.folder, "modules", columns, list(self.runs["run_id"]))
        rows = rows[(rows["module"] == MODULE) & rows["layer"].notna()]
        return rows.astype({"layer": int, "grad_norm": float})

    @cached_property
    def residual(self) -> pd.DataFrame:
        """The norms of dLoss/dx_l."""
        columns = ["run_id", "step", "layer", "grad_norm"]
        rows = store.read(self.folder, "residual", columns, list(self.runs["run_id"]))
        return rows.astype({"layer": int, "grad_norm": float})

    def settings(self, runs: pd.DataFrame, limit: int, skip: Iterable[str] = ()) -> tuple[list[Setting], list[str]]:
        """Split runs into at most `limit` panels over the fields that are neither color nor line style.

        Returns the panels and a note where some were left out.
        """
        fields = [c for c in self.panel_fields if c not in set(skip) and varies(runs, c)]
        if not fields:
            return [Setting("", runs)], []
        rows = runs[fields].to_numpy(object)
        keys = pd.Series([tuple(map(native, fields, row)) for row in rows], runs.index)
        kept = {c: values(runs, c) for c in fields}
        everything = {c: list(v) for c, v in kept.items()}

        def combinations() -> list[tuple[object, ...]]:
            found = set(keys)
            return [k for k in found if all(v in kept[c] for v, c in zip(k, fields, strict=True))]

        total = len(combinations())
        while len(combinations()) > limit:
            widest = max(fields, key=lambda c: len(kept[c]))
            if len(kept[widest]) == 1:
                break
            kept[widest] = spread(everything[widest], len(kept[widest]) - 1, widest)
        order = {c: {v: i for i, v in enumerate(everything[c])} for c in fields}
        picked = sorted(combinations(), key=lambda k: [order[c][v] for c, v in zip(fields, k, strict=True)])
        notes = [f"{len(picked)} of {total} panels shown"] if len(picked) < total else []
        return [
            Setting(", ".join(f"{c}={_short(c, v)}" for c, v in zip(fields, k, strict=True)), runs[keys == k])
            for k in picked
        ], notes

    def at_headline(self) -> pd.DataFrame:
        """The runs at the largest depth and at the rate nearest to the headline's."""
        runs = self.runs
        for column in ("n_layers", "peak_lr"):
            if column in self.panel_fields:
                runs = runs[runs[column] == chosen(values(runs, column), column)]
        return runs


def _short(column: str, value: object) -> str:
    return label(value)[:8] if column == "data_sha256" else label(value)


def at_most_one(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs at one value of each field that is neither color nor line style."""
    for column in study.panel_fields:
        found = values(runs, column)
        if len(found) > 1:
            keep = chosen(found, column)
            runs = runs[[native(column, v) == keep for v in runs[column]]]
    return runs


def held(study: Study, runs: pd.DataFrame) -> list[str]:
    """Notes that name the value of each swept field, beside depth and rate, that a figure holds fixed."""
    fields = [c for c in study.panel_fields if c not in ("n_layers", "peak_lr")]
    return [f"{c}={_short(c, native(c, runs[c].iloc[0]))}" for c in fields]


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
    runs = store.read(study_dir, "runs")
    if where:
        runs = select(runs, where)
    done = runs[runs["status"] == "done"].reset_index(drop=True)
    if done.empty:
        held = runs["status"].value_counts()
        states = ", ".join(f"{n} {status}" for status, n in sorted(held.items())) or "none at all"
        raise ConfigError(f"{study_dir} holds no finished run ({states}): run its sweep to the end first")
    steps = store.read(study_dir, "steps", ["run_id", "step", "train_loss", "val_loss"], list(done["run_id"]))
    how = look(done)
    done["outcome"] = outcomes(done, steps).reindex(done["run_id"]).to_numpy()
    done["hue"] = [label(native(how.hue, v)) for v in done[how.hue]]
    done["dash"] = "" if how.dash is None else [label(native(how.dash, v)) for v in done[how.dash]]
    return Study(
        folder=study_dir,
        runs=done[done["hue"].isin(how.colors) & done["dash"].isin(how.dashes)].reset_index(drop=True),
        steps=steps.astype({"train_loss": float, "val_loss": float}),
        look=how,
        unfinished=len(runs) - len(done),
        panel_fields=tuple(c for c in swept(done) if c not in (how.hue, how.dash)),
    )


# ---- series ---------------------------------------------------------------------------------------------


def geometric(rows: pd.DataFrame, keys: list[str], column: str = "grad_norm") -> pd.DataFrame:
    """Geometric mean (`mid`), `low`, `high` and `n` over runs; an exact zero or a non-finite value has no
    place on a log axis and is left out."""
    good = rows[np.isfinite(rows[column]) & (rows[column] > 0)]
    logs = good.assign(log=np.log(good[column])).groupby(keys, sort=True)
    out: pd.DataFrame = logs.agg(log=("log", "mean"), low=(column, "min"), high=(column, "max"), n=(column, "size"))
    return out.assign(mid=np.exp(out["log"])).drop(columns="log").reset_index()


def snapshots(rows: pd.DataFrame, n_steps: int) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) at init, after 5, 20 and 100 updates and at the end.

    Each run gives its recorded step nearest at or below the wanted one; a run that ended before gives none,
    but every run has an end.
    """
    ends = rows.groupby("run_id")["step"].transform("max")
    out: list[tuple[str, pd.DataFrame]] = []
    for wanted in [s for s in SNAPSHOTS if s < n_steps - 1]:
        below = rows[(rows["step"] <= wanted) & (ends >= wanted)]
        at = below[below["step"] == below.groupby("run_id")["step"].transform("max")]
        if len(at) and not (out and set(at["step"]) == set(out[-1][1]["step"])):
            out.append((f"step {_span(at['step'])}" + (" (init)" if wanted == 0 else ""), at))
    finite = rows[np.isfinite(rows["grad_norm"])]
    last = finite[finite["step"] == finite.groupby("run_id")["step"].transform("max")]
    if len(last):
        out.append((f"step {_span(last['step'])} (end)", last))
    return out


def _span(steps: pd.Series[int]) -> str:
    low, high = int(steps.min()), int(steps.max())
    return str(low) if low == high else f"{low}–{high}"
