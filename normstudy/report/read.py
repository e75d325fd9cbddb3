"""Read the studies of a page: the runs without repetitions, the cells of runs, and each study's question."""

import hashlib
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from normstudy import config as cfg
from normstudy.analysis import grid, load, pairs
from normstudy.analysis.grid import Value, value_text
from normstudy.analysis.outcomes import UNJUDGED
from normstudy.analysis.select import Where, native
from normstudy.config import places
from normstudy.errors import ONE_THREAD, ConfigError, Damaged, MissingRows, printable, warn
from normstudy.figures.look import short_names, swept, values
from normstudy.search import answer
from normstudy.search import settings as kept
from normstudy.study import records
from normstudy.study.schema import WATCH

CRASHED, UNFINISHED = "crashed", "running"  # states of runs without an outcome, besides UNJUDGED


class Source(NamedTuple):
    """What a page shows of one study besides the study's runs.

    question: from experiments/<study>.md, or "". commands: the commands of the study's sweeps, without repetitions.
    critical: the table that `normstudy critical` prints, or "". lacks: warnings of missing rows.
    """

    name: str
    folder: Path
    question: str
    commands: tuple[str, ...]
    search: kept.Settings | None
    critical: str
    lacks: tuple[str, ...]


class Cell(NamedTuple):
    """Runs that differ only in their seeds or in values that a search chose. rows: the runs' rows in `Bundle.runs`."""

    place: dict[str, Value]
    title: str
    rows: tuple[int, ...]


class Bundle(NamedTuple):
    """The studies of a page.

    runs: a row for each run, with the columns of `load.load` and the columns `key`, `of`, `state` and `also`. No two
    runs of the page have the same `key`. `of` is the study's index in `sources`. `state` is the outcome, or CRASHED,
    UNFINISHED or UNJUDGED if the run has no outcome. `also` contains the indices of later studies with the same run.
    steps, modules, residual: the tables of `load.load`, with the column key. fields: the columns that define a cell.
    searched: the columns whose values a search chose. names: user-defined placement or norm -> short name.
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
    """Read studies. Raises ConfigError if a folder is not a study or is given twice, or if no run is found."""
    found, sources = [], []
    for i, folder in enumerate(folders):
        with ONE_THREAD, warnings.catch_warnings(record=True) as warned:
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
    steps, modules, residual = (frame[frame["key"].isin(runs["key"])] for frame in (steps, modules, residual))
    return Bundle(tuple(sources), runs, steps, modules, residual, fields, searched, _cells(runs, fields, names), names)


def _distinct(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """If runs of several studies have equal losses, keep the first study's runs. `also` lists the later studies."""
    done = set(runs.loc[(runs["status"] == "done") & (runs["source"] != WATCH), "key"])
    parts = steps[steps["key"].isin(done)].groupby("key")[["train_loss", "val_loss"]]
    losses = {key: hashlib.sha256(rows.to_numpy().tobytes()).hexdigest() for key, rows in parts}
    name = pd.Series([losses.get(key, key) for key in runs["key"]], runs.index)
    later = runs["of"] != runs.groupby(name)["of"].transform("first")
    also = {key: tuple(part) for key, part in runs.loc[later, "of"].groupby(name)}
    return runs.assign(also=pd.Series([also.get(key, ()) for key in name], runs.index))[~later].reset_index(drop=True)


def _cells(runs: pd.DataFrame, fields: Sequence[str], names: dict[str, str]) -> tuple[Cell, ...]:
    """Return the cells, sorted by the values of the first field, then by the values of the second field, and so on."""
    order = {c: values(runs, c) for c in fields}
    found = [
        Cell(place, grid.title(place, names) or "every run", tuple(part.sort_values(["seed", "key"]).index))
        for place, part in pairs.cells_of(runs, list(fields))
    ]
    return tuple(sorted(found, key=lambda cell: [order[c].index(v) for c, v in cell.place.items()]))


def _source(folder: Path, lacks: tuple[str, ...], where: Where) -> Source:
    name = folder.resolve().name
    try:
        text = places.read(folder.resolve().parent.parent / "experiments" / f"{name}.md").decode(errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^\*\*Question\.\*\* (.+?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    question = printable(" ".join(found[1].split())) if found else ""
    settings = kept.read(folder)
    # If a run belongs to two studies, the page lists it under the first, but the critical values of both need it.
    critical = "" if settings is None else answer.render(*answer.critical_values(folder, where))
    return Source(name, folder, question, _commands(folder, text), settings, critical, lacks)


def _commands(folder: Path, text: str) -> tuple[str, ...]:
    """Return the commands recorded for a study's sweeps, or else the command in `text`, its page in experiments/."""
    recorded = []
    for path in records.paths_of(folder):
        try:
            recorded.append(records.read_record(path)[0].command)
        except Damaged as error:
            warn(str(error))
    stated = re.search(r"^\*\*Command\.\*\* `([^`]+)`", text, re.MULTILINE)
    commands = list(filter(None, recorded)) or ([stated[1]] if stated else [])
    return tuple(dict.fromkeys(map(printable, commands)))


def command_of(run: "pd.Series[Any]") -> str:
    """Return the command that trains a run again, into the study `again`. run: the run's row in the table `runs`."""
    if run["source"] == WATCH:
        return "# recorded by normstudy.watch"
    base, said = cfg.asked(cfg.RunConfig()), ["normstudy", "run", "study=again"]
    place = {column: native(column, run[column]) for column in cfg.dotted_keys() if column != "study"}
    for column, key in cfg.dotted_keys().items():
        group, _, leaf = key.rpartition(".")
        # A file that is not the group's default may set any value of the group. Then the command states all values.
        chosen = group in place and place[group] != base[group] and place[column] is not None
        if column == "study" or (column == "data_seed" and place[column] == place["seed"]):
            continue
        if leaf == "name" and place[column] != base[column]:
            said.append(f"{group}={place[column]}")
        elif leaf != "name" and (chosen or place[column] != base[column]):
            said.append(f"{key}={_quoted(value_text(place[column], repr))}")
    return shlex.join(said)


def _quoted(text: str) -> str:
    """Quote a value if it contains a character that has a meaning in Hydra's override grammar."""
    if re.fullmatch(r"[\w.:/+-]+", text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
