"""Load a study's finished runs, losses and gradient norms for figures, and split the runs into panels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from normstudy.analysis.grid import Value, phrase
from normstudy.analysis.load import update_ratio
from normstudy.analysis.outcomes import outcomes
from normstudy.analysis.pairs import cells_of
from normstudy.analysis.select import Where, has_value, native, select, tell_sources_apart
from normstudy.errors import ConfigError
from normstudy.figures.look import Look, choose_look, chosen, folded, label, short_names, spread, swept, values, varies
from normstudy.figures.paper import USUAL, Paper
from normstudy.search import settings as kept
from normstudy.search.rounds import CRASHED
from normstudy.study import tables, whole

MAX_PANELS, MAX_FACETS = 6, 24  # largest number of panels: MAX_FACETS if panels show a facet, else MAX_PANELS

# Figures read these columns of `runs` and the fields that vary. All other columns are dropped, because figures select
# rows hundreds of times, and with ninety columns the selections would take a quarter of the drawing time.
_READ = (
    "run_id", "seed", "placement", "n_layers", "peak_lr", "warmup_steps", "n_steps", "final_val_loss", "outcome",
    "data_seed", "eval_every", "eval_windows", "data_sha256", "ln_vocab", "unigram_entropy", "bigram_entropy",
    "n_params", "optimizer", "beta1", *whole.COLUMNS[1:],
)  # fmt: skip


class Lacks(Exception):
    """Raised if a figure cannot be drawn from a study; the message says what the study lacks."""


class Panel(NamedTuple):
    """A panel's title, and the runs that the panel shows."""

    title: str
    runs: pd.DataFrame


@dataclass(frozen=True)
class Study:
    """What figures need of a study.

    ended: all finished runs, and in a search also crashed runs, with the columns outcome, hue and dash. runs: the
    finished runs that have a color and a line style. Some runs have none if a field has too many values. unfinished:
    the number of runs that are not finished. panel_fields: varying fields that neither color nor line style shows.
    names: maps long names to short names. search: the settings of the study's search. omitted: titles of panels that a
    figure left out.
    """

    folder: Path
    ended: pd.DataFrame
    runs: pd.DataFrame
    steps: pd.DataFrame
    look: Look
    unfinished: int
    panel_fields: tuple[str, ...]
    names: Mapping[str, str]
    search: kept.Settings | None
    paper: Paper = USUAL
    omitted: list[str] = field(default_factory=list)

    @cached_property
    def finished(self) -> pd.DataFrame:
        return self.ended[self.ended["outcome"] != CRASHED].reset_index(drop=True)

    def text(self, column: str, value: object) -> str:
        """Format a config value for a figure."""
        text = label(native(column, value), self.names)
        return text[:8] if column == "data_sha256" else text

    def named(self, runs: pd.DataFrame, columns: Iterable[str]) -> list[str]:
        """Return text such as `d_model=64` for each column. In each of these columns, all `runs` have equal values."""
        return [f"{c}={self.text(c, runs[c].iloc[0])}" for c in columns]

    @cached_property
    def modules(self) -> pd.DataFrame:
        """Return the rows of the module `paper.module`. Columns: run_id, step, layer, value (the `paper.quantity`)."""
        quantity = self.paper.quantity
        read = [quantity] if quantity != "update_ratio" else ["update_norm", "param_norm"]
        rows = self._rows("modules", read, self.paper.module)
        return rows.assign(value=rows[quantity] if len(read) == 1 else update_ratio(rows)).drop(columns=read)

    @cached_property
    def residual(self) -> pd.DataFrame:
        """Return the norms of dLoss/dx_l. Columns: run_id, step, layer (`l`), value (the norm)."""
        return self._rows("residual", ["grad_norm"], None).rename(columns={"grad_norm": "value"})

    def _rows(self, table: str, numbers: list[str], module: str | None) -> pd.DataFrame:
        rows = whole.read(self.folder, table, self.runs, ["run_id", "step", "layer", *numbers], module, text=False)
        if rows["layer"].isna().any():
            raise Lacks(f"the module {module} is in no layer: choose another --module")
        return rows.astype({"layer": int, **dict.fromkeys(numbers, float)})

    def panels(
        self, runs: pd.DataFrame, limit: int = MAX_PANELS, skip: Iterable[str] = ()
    ) -> tuple[list[Panel], list[str]]:
        """Split runs by the values of the panel fields, except fields in `skip`, into at most `limit` panels.

        If the study has a facet, each value of the facet gets a panel, up to MAX_FACETS panels, and all other panel
        fields are fixed at one value. Returns the panels, and notes on fixed fields and on omitted panels.
        """
        fields = [c for c in self.panel_fields if c not in set(skip) and varies(runs, c)]
        if not fields:
            return [Panel("", runs)], []
        facet, notes, every_run = self.look.facet, list[str](), runs
        if facet in fields:
            runs = at_most_one(runs, [c for c in self.panel_fields if c not in (facet, *skip)], facet)
            notes = held(self, runs, [c for c in fields if c != facet])
            fields, limit = [facet], MAX_FACETS
        parts = {tuple(place.values()): part for place, part in cells_of(runs, fields)}
        picked = _combinations(parts, {c: values(runs, c) for c in fields}, limit)

        def title(key: tuple[Value, ...]) -> str:
            if facet in fields:  # small panels show only the value, because the figure's title names the field
                return folded(self.text(fields[0], key[0]))
            return ", ".join(phrase(c, self.text(c, v)) for c, v in zip(fields, key, strict=True))

        if len(picked) < (total := len(every_run[fields].drop_duplicates())):
            notes.append(f"{len(picked)} of {total} panels shown")
            self.omitted.extend(title(key) for key in sorted(set(parts) - set(picked), key=str))
        return [Panel(title(key), parts[key]) for key in picked], notes

    def at_headline(self) -> pd.DataFrame:
        """Select the runs with the largest depth and the learning rate nearest to HEADLINE_LR."""
        runs = self.runs
        for column in ("n_layers", "peak_lr"):
            if column in (*self.panel_fields, self.look.hue):
                runs = runs[runs[column] == chosen(values(runs, column), column)]
        return runs


def _combinations(
    found: Iterable[tuple[Value, ...]], ordered: Mapping[str, Sequence[Value]], limit: int
) -> list[tuple[Value, ...]]:
    """Return at most `limit` combinations of `found`, sorted. ordered: maps each field to its values in order.

    While more than `limit` combinations remain, one value is dropped from the field with the most remaining values.
    """
    every = sorted(found, key=lambda key: [ordered[c].index(v) for c, v in zip(ordered, key, strict=True)])
    kept, shown = dict(ordered), every
    while len(shown) > limit and len(kept[most := max(kept, key=lambda c: len(kept[c]))]) > 1:
        kept[most] = spread(ordered[most], len(kept[most]) - 1, most)
        shown = [key for key in every if all(v in kept[c] for c, v in zip(kept, key, strict=True))]
    return shown


def widest(runs: pd.DataFrame, column: str, field: str) -> list[Value]:
    """Count the values of `field` for each value of `column`. Return the values of `column` with the highest count."""
    count = {v: len(values(runs[has_value(runs, column, v)], field)) for v in values(runs, column)}
    return [v for v, n in count.items() if n == max(count.values())]


def at_most_one(runs: pd.DataFrame, columns: Iterable[str], facet: str | None) -> pd.DataFrame:
    """Select the runs that have the `chosen` value of each column. With a facet, choose among the `widest` values."""
    for column in columns:
        found = values(runs, column) if facet is None else widest(runs, column, facet)
        runs = runs[has_value(runs, column, chosen(found, column))]
    return runs


def held(study: Study, runs: pd.DataFrame, fields: Iterable[str] | None = None) -> list[str]:
    """Return a note such as `d_model=64` for each fixed field. Omit depth and learning rate, which titles show."""
    fields = study.panel_fields if fields is None else fields
    return study.named(runs, [c for c in fields if c not in ("n_layers", "peak_lr")])


def load(study_dir: Path, where: Where | None = None, paper: Paper = USUAL) -> Study:
    """Read a study's runs that match `where` (see `select`). Raises ConfigError if no finished run is found."""
    runs = select(tell_sources_apart(tables.read(study_dir, "runs")), where)
    search = kept.read(Path(study_dir))
    ended = runs[runs["status"].isin(["done"] if search is None else ["done", "failed"])].reset_index(drop=True)
    finished = ended["status"] == "done"
    if (done := ended[finished]).empty:
        states = ", ".join(f"{n} {status}" for status, n in sorted(runs["status"].value_counts().items())) or "no runs"
        raise ConfigError(f"{study_dir} has no finished run to draw ({states}): start or resume its sweep")
    steps = whole.read(study_dir, "steps", done, ["run_id", "step", "train_loss", "val_loss"], text=False)
    names = short_names(ended)
    alike = ended if search is None else ended.assign(**{search.of: done[search.of].iloc[0]})
    look, fields = choose_look(alike, names), swept(ended)
    ended["outcome"] = outcomes(done, steps).reindex(ended["run_id"]).where(finished.to_numpy(), CRASHED).to_numpy()
    ended = ended[[c for c in ended if c in {*_READ, look.hue, look.dash, *fields}]].copy()
    for name, column in (("hue", look.hue), ("dash", look.dash)):
        ended[name] = "" if column is None else [label(native(column, v), names) for v in alike[column]]
    if search is not None and look.hue == search.of:
        look = replace(look, hue="")
    return Study(
        folder=study_dir, look=look, ended=ended,
        runs=ended[finished & ended["hue"].isin(look.colors) & ended["dash"].isin(look.dashes)].reset_index(drop=True),
        unfinished=len(runs) - len(done), names=names, search=search,
        steps=steps.astype({"train_loss": float, "val_loss": float}),
        panel_fields=tuple(c for c in fields if c not in (look.hue, look.dash)), paper=paper,
    )  # fmt: skip
