"""Write what a watched loop does into the tables of a study, so that at most a minute is lost if it is killed."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from normstudy import config as cfg
from normstudy.config import places
from normstudy.errors import ConfigError
from normstudy.study import files, parquet, paths, schema, tables
from normstudy.watch.names import Place
from normstudy.watch.numbers import Numbers

ENTROPIES = ("unigram_entropy", "bigram_entropy")
NORMS = ("grad_norm", "param_norm", "update_norm")


def folder_of(results_dir: str, study: str) -> Path:
    """Return the folder of a study. Raises ConfigError if it is sealed, or holds runs of another kind."""
    results_dir = places.expanded(results_dir, "results_dir")
    paths.check_study(results_dir, study)
    folder = Path(results_dir, study)
    if (folder / schema.SEALED).exists():
        raise ConfigError(f"{folder} is sealed: choose another study")
    if tables.kind_of(folder) is None:
        raise ConfigError(f"{folder} holds the runs of a sweep: choose another study for watched runs")
    return folder


def new_id(name: str, config: Mapping[str, object]) -> str:
    """Return an id that no other run has: the study's name, and ten hex digits."""
    said = json.dumps([name, config, tables.now().isoformat()], default=str).encode()
    return f"{name}-{hashlib.sha256(said + os.urandom(16)).hexdigest()[:10]}"


def row_of(folder: Path, run_id: str) -> dict[str, Any]:
    """Return the row of a run that goes on. Raises ConfigError if there is none, or if it is compacted."""
    row = parquet.read_row(folder, run_id) if re.fullmatch(r"[\w.+-]{1,99}", run_id, re.ASCII) else None
    if row is None:
        if run_id in tables.statuses(folder):
            raise ConfigError(f"resume {run_id}: {folder} is compacted, so its runs cannot go on: start a new run")
        raise ConfigError(f"resume {run_id!r} is no run of {folder}: give one of its run ids")
    return dict(row)


def check_resumed(folder: Path, given: Mapping[str, Any], groups: Sequence[Place]) -> None:
    """Raise ConfigError if a watch's options, or its model, are not those of the run that it resumes."""
    if given["resume"] is None:
        return
    before = row_of(folder, given["resume"])
    config = None if given["config"] is None else json.dumps(given["config"], sort_keys=True)
    asked = [("every", "probe_every", given["every"]), ("dense", "probe_dense_steps", given["dense"])]
    asked += [(name, name, given[name]) for name in ("seed", *ENTROPIES)] + [("config", "config", config)]
    for word, column, value in asked:
        if value is not None and value != before[column] and (column not in ENTROPIES or before[column] is not None):
            raise ConfigError(f"{word} {value} differs from the run's {before[column]}: use the same value")
    rows = tables.read(folder, "modules", ["step", "layer", "module"], [given["resume"]])
    first = rows[rows["step"] == rows["step"].min()]
    there = {
        (None if layer != layer else int(layer), module)
        for layer, module in zip(first["layer"], first["module"], strict=True)
    }
    if there and there != set(groups):
        raise ConfigError(
            f"the model has {len(groups)} modules, and the run's had {len(there)}, not all of the same names: "
            f"resume {given['resume']} with its own model, blocks and names"
        )


class Record:
    """Hold the rows of the window that is open, and write the files of a run."""

    def __init__(self, study_dir: Path, row: dict[str, Any], groups: Sequence[Place]) -> None:
        self.study_dir, self.row, self.groups = study_dir, row, groups
        self._window: dict[str, dict[str, list[Any]]] = {}
        self._number = -1
        self._unsaved = False

    @property
    def run_id(self) -> str:
        return str(self.row["run_id"])

    def resume(self, given: Mapping[str, Any]) -> int:
        """Read the row and the open window of a run that goes on, and return its next step.

        given: the watch's options, which `check_resumed` has accepted. What is recorded of later steps is removed.
        """
        before, step = row_of(self.study_dir, self.run_id), given["step"]
        recorded = int(str(before["n_steps"]))
        if step is not None and step > recorded:
            lost = (
                f"watch: steps {recorded} to {step - 1} were not recorded; step {step} of the loop is step {recorded}"
            )
            print(f"{lost} of {self.run_id}", file=sys.stderr)
        step = recorded if step is None else min(step, recorded)
        diverged = before["nonfinite_step"]
        kept = diverged if diverged is not None and int(str(diverged)) < step else None
        again = {
            "status": "running",
            "n_steps": step,
            "nonfinite_step": kept,
            "finished_at": None,
            "final_val_loss": None,
        }
        self.row = {**before, **again, **{name: given[name] for name in ENTROPIES if given[name] is not None}}
        self._write_row()  # first: readers must not take what is left for a finished run
        self._open(max(step - 1, 0) // schema.WATCHED_WINDOW)
        for table in schema.SERIES:
            for path in (self.study_dir / "tables" / table).glob(f"{self.run_id}-*.parquet"):
                number = int(path.stem.rpartition("-")[2])
                if number == self._number:
                    rows = parquet.read(path)
                    columns = rows.filter(pc.less(rows["step"], step)).to_pydict()
                    self._window[table] = {name: values for name, values in columns.items() if name != "run_id"}
                elif number > self._number:
                    path.unlink()
        losses = self._window["steps"]["train_loss"]
        self.row["final_train_loss"] = losses[-1] if losses else None
        self._unsaved = True
        return step

    def _open(self, number: int) -> None:
        """Begin a window."""
        self._number = number
        self._window = {
            table: {f.name: [] for f in schema.SCHEMAS[table] if f.name != "run_id"} for table in schema.SERIES
        }

    def _write_row(self) -> None:
        """Write the run's row, also in the place of a finished run's."""
        row = pa.Table.from_pylist([self.row], schema.SCHEMAS["runs"])
        with files.storing(self.study_dir):
            files.place(self.study_dir, f"tables/runs/{self.run_id}.parquet", parquet.encode("runs", row))

    def add(self, numbers: Numbers) -> None:
        """Add a step's rows; write the window that it ends."""
        if numbers.step // schema.WATCHED_WINDOW != self._number:
            self.write()
            self._open(numbers.step // schema.WATCHED_WINDOW)
        train, val, lr, grad, param, update, clip = map(_known, numbers.steps)
        _append(self._window["steps"], {
            "step": numbers.step, "train_loss": train, "val_loss": val, "lr": lr, "grad_norm": grad,
            "param_norm": param, "update_norm": update, "clip_factor": clip,
        })  # fmt: skip
        for i, (layer, module) in enumerate(self.groups) if numbers.modules else ():
            norms = {name: _known(values[i]) for name, values in zip(NORMS, numbers.modules or (), strict=True)}
            _append(self._window["modules"], {"step": numbers.step, "layer": layer, "module": module, **norms})
        for point, (rms, norm) in enumerate(zip(*numbers.stream, strict=True)) if numbers.stream else ():
            values = {"step": numbers.step, "layer": point, "rms": _known(rms), "grad_norm": _known(norm)}
            _append(self._window["residual"], values)
        if self.row["nonfinite_step"] is None and not numbers.finite:
            self.row["nonfinite_step"] = numbers.step
        self.row |= {"n_steps": numbers.step + 1, "final_train_loss": train}
        self._unsaved = True

    def write(self) -> None:
        """Write the open window, in the place of what was written of it before, and the run's row."""
        found = []
        for table, columns in self._window.items() if self._unsaved else ():
            content = pa.Table.from_pydict(
                {**columns, "run_id": [self.run_id] * len(columns["step"])}, schema.SCHEMAS[table]
            )
            name = schema.window_name(self.run_id, self._number)
            found.append((f"tables/{table}/{name}", parquet.encode(table, content)))
        with files.storing(self.study_dir):
            files.place_all(self.study_dir, found)
        self._unsaved = False
        self._write_row()

    def end(self, status: str, **columns: object) -> None:
        """Write everything, with the run's status."""
        now = tables.now()
        seconds = (now - self.row["started_at"]).total_seconds()
        self.row |= {"status": status, "finished_at": now, "wall_time_s": seconds, **columns}
        self.write()


def _append(columns: dict[str, list[Any]], values: Mapping[str, object]) -> None:
    for name, kept in columns.items():
        kept.append(values[name])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def first_row(
    run_id: str, study: str, seed: int, params: Sequence[torch.Tensor], config: Mapping[str, object]
) -> dict[str, Any]:
    """Return the columns of a run's row that are known at its start. config: may name columns of this project."""
    kinds = cfg.asked_types()
    fits = {n: int | float if kind is float else kind for n, kind in kinds.items() if n not in schema.UNFILLED}
    return {
        **{name: value for name, value in config.items() if name in fits and isinstance(value, fits[name])},
        "config": json.dumps(config, sort_keys=True),
        "run_id": run_id, "status": "running", "study": study, "source": schema.WATCH, "seed": seed, "data_seed": seed,
        "identity_version": cfg.IDENTITY_VERSION, "n_params": sum(p.numel() for p in params), "n_steps": 0,
        "nonfinite_step": None, "started_at": datetime.datetime.now(datetime.UTC),
        "python": platform.python_version(), "torch": torch.__version__,
        "device": str(next(p.device for p in params if p.requires_grad)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
