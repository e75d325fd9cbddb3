"""Choose what tells a study's runs apart in figures: color (`hue`), line style (`dash`) and panels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.colors import to_hex

from normstudy import config as cfg
from normstudy.analysis.grid import Value, typed_number, value_text
from normstudy.analysis.pairs import treatments
from normstudy.analysis.select import KINDS, own_columns, values_of
from normstudy.figures import style

HEADLINE_LR = 3e-3  # figures that show only one learning rate show the rate nearest to this one
MAX_HUES = 6  # largest number of colors in a panel
NAME_WIDTH = 24  # characters that fit above each of four panels in a row

_NAMES = {
    "placement": cfg.PLACEMENT_NAMES, "norm": (*cfg.NORM_NAMES, "auto"), "init": ("auto", *cfg.INIT_NAMES),
    "optimizer": cfg.OPTIMIZER_NAMES, "schedule": cfg.SCHEDULE_NAMES,
}  # fmt: skip


def label(value: Value, names: Mapping[str, str]) -> str:
    """Format a config value for a figure: 3e-3, null, true, pre. names: long name -> short name (`short_names`)."""
    text = value_text(value, typed_number)
    return names.get(text, text)


def folded(name: str, width: int = NAME_WIDTH) -> str:
    """Break a long name, such as a user-defined block's, into at most two lines of at most `width` characters."""
    if len(name) <= width:
        return name
    ends = [i + 1 for i, c in enumerate(name[:width]) if c in ":._- "]
    cut = ends[-1] if ends else width
    rest = name[cut:].strip()
    return f"{name[:cut].strip()}\n{rest if len(rest) <= width else '…' + rest[1 - width :]}"


def values(runs: pd.DataFrame, column: str) -> list[Value]:
    """Return a column's distinct values: null, then built-in names in the config's order, then all others, sorted."""
    order = {name: i for i, name in enumerate(_NAMES.get(column, ()))}
    return sorted(values_of(runs, column), key=lambda v: -1 if v is None else order.get(str(v), len(order)))


def varies(runs: pd.DataFrame, column: str) -> bool:
    """Return whether a column has two or more distinct values. Null counts as a value."""
    return len(runs[column].unique()) > 1


def swept(runs: pd.DataFrame) -> list[str]:
    """Return the varying config columns that affect training.

    Add `data_sha256` if runs with equal text settings had different texts, because their losses cannot be compared.
    """
    found = [c for c in (*treatments(), *own_columns(runs)) if c in runs and varies(runs, c)]
    named = [c for c in cfg.TEXT_COLUMNS if c in found]
    parts = [part for _, part in runs.groupby(named, dropna=False)] if named else [runs]
    return [*found, "data_sha256"] if any(varies(part, "data_sha256") for part in parts) else found


def text_fields(runs: pd.DataFrame) -> dict[str, int]:
    """Map each varying text field, such as placement, to its number of values. Keep the config's order of fields."""
    return {c: len(values(runs, c)) for c in swept(runs) if KINDS.get(c) is str and c not in cfg.TEXT_COLUMNS}


def short_names(runs: pd.DataFrame) -> dict[str, str]:
    """Map user-defined placements and norms, `package.module:function`, to `function`, if this name is unique."""
    out: dict[str, str] = {}
    for column in ("placement", "norm"):
        found = [str(v) for v in values(runs, column)] if column in runs else []
        tails = [v.rpartition(":")[2] for v in found]
        taken = {*_NAMES[column], *(t for t in tails if tails.count(t) > 1)}
        out |= {v: t for v, t in zip(found, tails, strict=True) if ":" in v and t not in taken}
    return out


def chosen(found: Sequence[Value], column: str) -> Value:
    """Choose the value of a column to show: for peak_lr, the value nearest to HEADLINE_LR, otherwise the last value."""
    if column != "peak_lr":
        return found[-1]
    rates = [(abs(math.log(v / HEADLINE_LR)), i) for i, v in enumerate(found) if isinstance(v, int | float)]
    return found[min(rates)[1]]


def spread(found: Sequence[Value], limit: int, column: str) -> list[Value]:
    """Choose at most `limit` evenly spaced values of a column. Include both ends and, for peak_lr, `chosen`."""
    if len(found) <= limit:
        return list(found)
    if limit == 1:
        return [chosen(found, column)]
    picked = [round(i * (len(found) - 1) / (limit - 1)) for i in range(limit)]
    if column == "peak_lr" and limit > 2 and (best := found.index(chosen(found, column))) not in picked:
        picked[min(range(1, limit - 1), key=lambda i: abs(picked[i] - best))] = best
    return [found[i] for i in sorted(picked)]


def spread_labels(runs: pd.DataFrame, column: str, limit: int, names: Mapping[str, str], notes: list[str]) -> list[str]:
    """Return labels for at most `limit` values of a column. If values are left out, append a note to `notes`."""
    found = values(runs, column)
    picked = spread(found, limit, column)
    if len(picked) < len(found):
        notes.append(f"{len(picked)} of {len(found)} values of {column} shown")
    return [label(v, names) for v in picked]


@dataclass(frozen=True)
class Look:
    """How runs are told apart: `hue` is the field that color shows, and `dash` is the field that line style shows.

    hue: "" if all runs have one color. colors, dashes: the color or line style of each value of a field. facet: a text
    field that panels show, because it has too many values for colors.
    """

    hue: str
    dash: str | None
    colors: dict[str, str]
    dashes: dict[str, style.LineStyle]
    notes: tuple[str, ...] = ()
    facet: str | None = None

    @property
    def by(self) -> str:
        """Return the fields that tell lines and panels apart, as text for a title: `placement and warmup_steps`."""
        fields = [self.hue] if self.dash is None else [self.hue, self.dash]
        if self.facet is None:
            return " and ".join(fields)
        if len(self.colors) == 1:
            fields.remove(self.hue)
        return " per ".join([" and ".join(fields)] * bool(fields) + [self.facet])

    def filling(self, dash: str, color: str) -> str:
        """Return the fill color of the markers of a line style. Later line styles have paler fills."""
        share = list(self.dashes).index(dash) / max(1, len(self.dashes) - 1)
        return to_hex((color, 0.6 * (1 - share)), keep_alpha=True)

    def arms(self, rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
        """Split `rows` by color and line style. Return (hue, dash, part) for each part, in the legend's order."""
        parts = dict(iter(rows.groupby(["hue", "dash"], sort=False)))
        return [(hue, dash, parts[hue, dash]) for hue in self.colors for dash in self.dashes if (hue, dash) in parts]


def choose_look(runs: pd.DataFrame, names: Mapping[str, str] | None = None) -> Look:
    """Choose which fields are shown by color, by line style, and by panels (the facet).

    Facet: a text field with more than MAX_HUES values; placement is preferred, then the field with the most values.
    Color: a text field with fewer values; placement is preferred, then the first field. If all have more values, color
    shows n_layers; if no text field varies, placement. Line style: warmup_steps if it varies; if not, another text
    field with at most MAX_HUES values. names: maps long names to short names (`short_names`).
    """
    text = text_fields(runs)
    many = {c: n for c, n in text.items() if n > MAX_HUES}
    facet = "placement" if "placement" in many else max(many, key=lambda c: many[c], default=None)
    few = [c for c in text if c not in many]
    hue = "placement" if "placement" in few else next(iter(few), "placement" if facet is None else "n_layers")
    dash = "warmup_steps" if "warmup_steps" in swept(runs) else next((c for c in few if c != hue), None)

    notes = list[str]()
    hues = spread_labels(runs, hue, MAX_HUES, names or {}, notes)
    dashes = [] if dash is None else spread_labels(runs, dash, len(style.DASHES), names or {}, notes)
    styles: dict[str, style.LineStyle] = dict(zip(dashes, style.DASHES, strict=False)) if dash else {"": "-"}
    return Look(hue, dash, colors_of(hue, hues), styles, tuple(notes), facet)


def colors_of(hue: str, names: Sequence[str]) -> dict[str, str]:
    """Choose a color for each value of `hue`. Deeper models are darker. Built-in names have fixed colors."""
    if hue == "n_layers":
        return dict(zip(names, reversed(style.shades(len(names), style.ORDERED)), strict=True))
    fixed = style.PLACEMENT_COLORS if hue == "placement" else {}
    colors = fixed | dict(zip([n for n in _NAMES.get(hue, ()) if n not in fixed], style.OTHER_COLORS, strict=False))
    used = {colors[n] for n in names if n in colors}
    pool = dict.fromkeys((*style.OTHER_COLORS, *style.OWN_COLORS, *style.PLACEMENT_COLORS.values()))
    free = [c for c in pool if c not in used]
    free.sort(key=lambda c: c in colors.values())  # own names get the colors of built-in names last
    return {n: colors[n] if n in colors else free.pop(0) for n in names}
