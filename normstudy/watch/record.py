"""Write what is measured in a watched loop into the tables of a study."""

import json
import math
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
from normstudy.watch.names import Layout, Place
from normstudy.watch.numbers import Numbers

ENTROPIES = ("unigram_entropy", "bigram_entropy")
NORMS = ("grad_norm", "param_norm", "update_norm")
COLUMNS = ("train_loss", "val_loss", "lr", *NORMS, "clip_factor")  # of the table steps


def folder_of(results_dir: str, study: str) -> Path:
    """Return the folder of a study. Raise ConfigError if the study is sealed or contains the runs of a sweep."""
    results_dir = places.expanded(results_dir, "results_dir")
    paths.check_study(results_dir, study)
    folder = Path(results_dir, study)
    if (folder / schema.SEALED).exists():
        raise ConfigError(f"{folder} is sealed, so it accepts no new runs: choose another study")
    if tables.kind_of(folder) is None:
        raise ConfigError(f"{folder} contains the runs of a sweep: choose another study for watched runs")
    return folder


def row_of(folder: Path, run_id: str) -> dict[str, Any]:
    """Return the row of a run to resume. Raise ConfigError if the run does not exist or is compacted."""
    row = parquet.read_row(folder, run_id) if re.fullmatch(r"[\w.+-]{1,99}", run_id, re.ASCII) else None
    if row is None:
        if run_id in tables.statuses(folder):
            raise ConfigError(f"resume={run_id}: {folder} is compacted, so its runs cannot be resumed: start a new run")
        raise ConfigError(f"resume={run_id!r} is not a run of {folder}: give one of its run ids")
    return row


def check_resumed(folder: Path, given: Mapping[str, Any], groups: Sequence[Place]) -> None:
    """Raise ConfigError if the options or the model differ from those of the run to resume."""
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
    there = set(zip(first["layer"].fillna(-1), first["module"], strict=True))
    if there and there != {(-1 if layer is None else layer, module) for layer, module in groups}:
        raise ConfigError(
            f"the model has {len(groups)} modules, but the run's model had {len(there)} with other names or layers: "
            f"resume {given['resume']} with the run's model, blocks and names"
        )


class Record:
    """Collect a run's rows, one window of steps at a time, and write the run's files."""

    def __init__(self, study_dir: Path, row: dict[str, Any], groups: Sequence[Place]) -> None:
        self.study_dir, self.row, self.groups, self.run_id = study_dir, row, groups, row["run_id"]
        self._window: dict[str, list[dict[str, Any]]] = {}
        self._number, self._unsaved = -1, False

    def resume(self, given: Mapping[str, Any]) -> int:
        """Read the row and the last window of the run to resume, and return the run's next step.

        given: the watch's options, which `check_resumed` has accepted. Rows from the next step on are removed.
        """
        before, at = row_of(self.study_dir, self.run_id), given["step"]
        recorded: int = before["n_steps"]
        if at is not None and at > recorded:
            lost = f"steps {recorded} to {at - 1} were not recorded; step {at} of the loop is step {recorded}"
            print(f"watch: {lost} of {self.run_id}", file=sys.stderr)
        step = recorded if at is None else min(int(at), recorded)
        self.row = before | {"status": "running", "n_steps": step, "finished_at": None, "final_val_loss": None}
        if before["nonfinite_step"] is not None and before["nonfinite_step"] >= step:
            self.row["nonfinite_step"] = None
        self.row |= {name: given[name] for name in ENTROPIES if given[name] is not None}
        self.write()  # first, so that readers never see a finished run with missing rows
        self._open(max(step - 1, 0) // schema.WATCHED_WINDOW)
        for table in schema.SERIES:
            for path in (self.study_dir / "tables" / table).glob(f"{self.run_id}-*.parquet"):
                number = int(path.stem.rpartition("-")[2])
                if number == self._number:
                    rows = parquet.read(path)
                    self._window[table] = rows.filter(pc.less(rows["step"], step)).to_pylist()
                elif number > self._number:
                    path.unlink()
        self.row["final_train_loss"] = self._window["steps"][-1]["train_loss"] if self._window["steps"] else None
        self._unsaved = True
        return step

    def _open(self, number: int) -> None:
        self._number, self._window = number, {table: [] for table in schema.SERIES}

    def add(self, numbers: Numbers) -> None:
        """Add a step's rows. If the step begins a new window, write the previous window first."""
        if numbers.step // schema.WATCHED_WINDOW != self._number:
            self.write()
            self._open(numbers.step // schema.WATCHED_WINDOW)
        key = {"run_id": self.run_id, "step": numbers.step}
        self._window["steps"].append(key | _known(COLUMNS, numbers.steps))
        for (layer, module), norms in zip(self.groups, numbers.modules, strict=bool(numbers.modules)):
            self._window["modules"].append({**key, "layer": layer, "module": module, **_known(NORMS, norms)})
        for point, norms in enumerate(numbers.stream):
            self._window["residual"].append({**key, "layer": point, **_known(("rms", "grad_norm"), norms)})
        if self.row["nonfinite_step"] is None and not numbers.finite:
            self.row["nonfinite_step"] = numbers.step
        self.row |= {"n_steps": numbers.step + 1, "final_train_loss": self._window["steps"][-1]["train_loss"]}
        self._unsaved = True

    def write(self) -> None:
        """Write the current window if it has changed, replacing its files, and then the run's row."""
        found = []
        for table, rows in self._window.items() if self._unsaved else ():
            content = pa.Table.from_pylist(rows, schema.SCHEMAS[table])
            name = schema.window_name(self.run_id, self._number)
            found.append((f"tables/{table}/{name}", parquet.encode(table, content)))
        row = pa.Table.from_pylist([self.row], schema.SCHEMAS["runs"])
        with files.storing(self.study_dir):
            files.place_all(self.study_dir, found)
            self._unsaved = False
            files.place(self.study_dir, f"tables/runs/{self.run_id}.parquet", parquet.encode("runs", row))

    def end(self, status: str, **columns: object) -> None:
        """Write the current window, and the run's row with its final status."""
        now = tables.now()
        seconds = (now - self.row["started_at"]).total_seconds()
        self.row |= {"status": status, "finished_at": now, "wall_time_s": seconds, **columns}
        self.write()


def _known(columns: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in zip(columns, values, strict=True)}


def first_row(run_id: str, given: Mapping[str, Any], layout: Layout, params: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the columns of a run's row that are known at its start. given: the watch's options."""
    config, seed = given["config"] or {}, given["seed"] or 0  # keys of config may be columns of `runs`
    device = next(p.device for p in params if p.requires_grad)
    kinds = cfg.asked_types()
    fits = {n: int | float if kind is float else kind for n, kind in kinds.items() if n not in schema.UNFILLED}
    return {
        **{name: value for name, value in config.items() if name in fits and isinstance(value, fits[name])},
        **{name: given[name] for name in ("study", *ENTROPIES)},
        "config": json.dumps(config, sort_keys=True), "run_id": run_id, "status": "running", "source": schema.WATCH,
        "seed": seed, "data_seed": seed, "probe_every": given["every"], "probe_dense_steps": given["dense"],
        "identity_version": cfg.IDENTITY_VERSION, "n_layers": len(layout.blocks),
        "n_params": sum(p.numel() for p in params), "n_steps": 0, "nonfinite_step": None, "started_at": tables.now(),
        "python": platform.python_version(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
