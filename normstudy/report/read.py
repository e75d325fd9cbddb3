"""Read the studies of a page: their runs, each counted once, the cells that they form, and what surrounds them."""

from __future__ import annotations

import hashlib
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from normstudy import config as cfg
from normstudy.analysis import load, words
from normstudy.analysis.grid import Value, value_text
from normstudy.analysis.outcomes import UNJUDGED
from normstudy.analysis.select import Where, native
from normstudy.config import places
from normstudy.errors import ConfigError, Damaged, MissingRows, printable, warn
from normstudy.figures.look import short_names, swept, values
from normstudy.search import answer
from normstudy.search import settings as kept
from normstudy.study import records
from normstudy.study.schema import WATCH

CRASHED, UNFINISHED = "crashed", "running"  # what stands for the outcome of a run that has none; with UNJUDGED


class Source(NamedTuple):
    """Hold what a page says of one study beside its runs.

    question: that of experiments/<study>.md, or "". commands: of its sweeps, in order, each once. critical: the table
    that `normstudy critical` prints, or "". lacks: warnings of missing rows.
    """

    name: str
    folder: Path
    question: str
    commands: tuple[str, ...]
    search: kept.Settings | None
    critical: str
    lacks: tuple[str, ...]


class Cell(NamedTuple):
    """Hold the rows, in `Bundle.runs`, of runs that differ only in their seeds or in what a search chose."""

    place: dict[str, Value]
    title: str
    rows: tuple[int, ...]


class Bundle(NamedTuple):
    """Hold the studies of a page.

    runs: one row a run, with the columns of `load.load`, and of (index in `sources`), state (its outcome, or what
    stands for it) and also (indices of later studies that have the same run). steps, modules, residual: the rows of the
    finished runs, by `key`, which is unique over the studies. fields: the columns that define a cell. searched: those
    whose values a search chose. names: long name -> short name.
    """

    sources: tuple[Source, ...]
    runs: pd.DataFrame
    steps: pd.DataFrame
    modules: pd.DataFrame
    residual: pd.DataFrame
    fields: tuple[str, ...]
    searched: tuple[str, ...]
    cells: tuple[Cell, ...]
    names: dict[str, str]


def read(folders: Sequence[Path], where: Where = ()) -> Bundle:
    """Read studies. Raises ConfigError for a folder that is no study, for one given twice, and if there is no run."""
    found, sources = [], []
    for i, folder in enumerate(folders):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", MissingRows)
            tables = load.load(folder, where=where)
        lacks = tuple(dict.fromkeys(str(one.message) for one in warned if one.category is MissingRows))
        for line in lacks:
            warn(line)
        sources.append(_source(Path(folder), lacks, where))
        found.append([frame.assign(key=f"{i}:" + frame["run_id"].astype(str)) for frame in tables])
        found[-1][0]["of"] = i
    if len({source.folder.resolve() for source in sources}) < len(folders):
        raise ConfigError("a study is given twice: name each study once")
    runs, steps, modules, residual = (pd.concat(frames, ignore_index=True) for frames in zip(*found, strict=True))
    if runs.empty:
        raise ConfigError(f"{', '.join(map(str, folders))}: no run to report; start a sweep, or change --where")
    runs = _distinct(runs, steps)
    runs["state"] = runs["outcome"].where(runs["status"] == "done", UNFINISHED).fillna(UNJUDGED)
    runs.loc[runs["status"] == "failed", "state"] = CRASHED
    searched = tuple(dict.fromkeys(source.search.of for source in sources if source.search))
    fields = tuple(c for c in swept(runs) if c not in searched)
    names = short_names(runs)
    cells = _cells(runs, fields, names)
    keys = set(runs["key"])
    steps, modules, residual = (frame[frame["key"].isin(keys)] for frame in (steps, modules, residual))
    return Bundle(tuple(sources), runs, steps, modules, residual, fields, searched, cells, names)


def _distinct(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Drop finished runs with the losses of a run of an earlier study, and name their studies in its column `also`."""
    done = set(runs.loc[(runs["status"] == "done") & (runs["source"] != WATCH), "key"])
    losses = {
        key: hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()
        for key, rows in steps[steps["key"].isin(done)].groupby("key")[["train_loss", "val_loss"]]
    }
    name = pd.Series([losses.get(key, key) for key in runs["key"]], runs.index)
    later = runs["of"] != runs.groupby(name)["of"].transform("first")
    also = {key: tuple(part) for key, part in runs.loc[later, "of"].groupby(name)}
    others = pd.Series([also.get(key, ()) for key in name], runs.index)
    return runs.assign(also=others)[~later].reset_index(drop=True)


def _cells(runs: pd.DataFrame, fields: Sequence[str], names: dict[str, str]) -> tuple[Cell, ...]:
    """Return the cells in the order of their values, the first field's first."""
    order = {c: values(runs, c) for c in fields}
    places: dict[tuple[Value, ...], list[int]] = {}
    for i, row in enumerate(runs[list(fields)].itertuples(index=False)):
        places.setdefault(tuple(native(c, v) for c, v in zip(fields, row, strict=True)), []).append(i)
    cells = []
    for place in sorted(places, key=lambda place: [order[c].index(v) for c, v in zip(fields, place, strict=True)]):
        of = dict(zip(fields, place, strict=True))
        rows = sorted(places[place], key=lambda i: (int(runs["seed"][i]), str(runs["key"][i])))
        cells.append(Cell(of, words.title(of, names) or "every run", tuple(rows)))
    return tuple(cells)


def _source(folder: Path, lacks: tuple[str, ...], where: Where) -> Source:
    name = folder.resolve().name
    page = folder.resolve().parent.parent / "experiments" / f"{name}.md"
    try:
        text = places.read(page).decode(errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^\*\*Question\.\*\* (.+?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    question = printable(" ".join(found[1].split())) if found else ""
    settings = kept.read(folder)
    # Of all runs, also those that the page shows in another study: without them the values would be others.
    critical = "" if settings is None else answer.render(*answer.critical_values(folder, where))
    return Source(name, folder, question, _commands(folder, text), settings, critical, lacks)


def _commands(folder: Path, text: str) -> tuple[str, ...]:
    """Return the commands of a study's sweeps that were recorded, or the one that its page (`text`) states."""
    recorded = []
    for path in records.paths_of(folder):
        try:
            recorded.append(records.read_record(path)[0].command)
        except Damaged as error:
            warn(str(error))
    stated = re.search(r"^\*\*Command\.\*\* `([^`]+)`", text, re.MULTILINE)
    commands = list(filter(None, recorded)) or ([stated[1]] if stated else [])
    return tuple(dict.fromkeys(map(printable, commands)))


def command_of(run: pd.Series[Any]) -> str:
    """Return the command that trains a run again, in a study of its own. run: its row of the table `runs`."""
    if run["source"] == WATCH:
        return "# recorded by normstudy.watch"
    base, said = cfg.asked(cfg.RunConfig()), ["normstudy", "run", "study=again"]
    place = {column: native(column, run[column]) for column in cfg.dotted_keys() if column != "study"}
    for column, key in cfg.dotted_keys().items():
        group, _, leaf = key.rpartition(".")
        # The file of a group that is not the default may set other values, so all values of this group are named.
        chosen = group in place and place[group] != base[group] and place[column] is not None
        if column == "study" or (column == "data_seed" and place[column] == place["seed"]):
            continue
        if leaf == "name" and place[column] != base[column]:
            said.append(f"{group}={place[column]}")
        elif leaf != "name" and (chosen or place[column] != base[column]):
            said.append(f"{key}={_quoted(value_text(place[column], repr))}")
    return shlex.join(said)


def _quoted(text: str) -> str:
    """Quote a value for Hydra's grammar where a character has a meaning there."""
    if re.fullmatch(r"[\w.:/+-]+", text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
