"""Read a study's four tables as DataFrames and add derived columns, for `normstudy.load`."""

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy import config as cfg
from normstudy.analysis.outcomes import UNJUDGED, gap_closed, outcomes
from normstudy.analysis.pairs import varying
from normstudy.analysis.select import Where, select, tell_sources_apart
from normstudy.study import schema, tables, whole

ALWAYS_JOINED = ("placement", "n_layers", "peak_lr", "warmup_steps", "seed")


class Tables(NamedTuple):
    """The four tables of a study. The file results/README.md defines every column."""

    runs: pd.DataFrame
    steps: pd.DataFrame
    modules: pd.DataFrame
    residual: pd.DataFrame


def load(study_dir: Path | str, *, join: bool = False, where: Where = ()) -> Tables:
    """Read a study, even while a sweep is writing it. Raises ConfigError for a folder that is not a study.

    If a table lacks some rows of a run, the run is left out of this table, and a warning (MissingRows) names the run.
    `runs` gets the derived columns gap_closed, bits_per_byte (of the final validation loss) and outcome (null if the
    run is not done or its outcome is UNJUDGED). `steps` gets update_rms, and `modules` gets update_ratio. join: whether
    the other tables also get some columns of `runs`: outcome, ALWAYS_JOINED, and every config column that varies in
    the study. where: which runs to read, as on the command line: "n_layers=2,4,peak_lr>=1e-3".
    """
    # Read `runs` first, because a sweep marks a run as done after it has saved the run's rows in the other tables.
    runs = select(tell_sources_apart(tables.read(study_dir, "runs")), where)
    steps, modules, residual = (whole.read(study_dir, table, runs) for table in schema.SERIES)
    runs = derive(runs, outcomes(runs, steps).to_dict())
    n_params = steps[["run_id"]].join(runs.set_index("run_id")["n_params"], on="run_id")["n_params"]
    steps = steps.assign(update_rms=update_rms(steps, n_params))
    modules = modules.assign(update_ratio=update_ratio(modules))
    if join:
        columns = runs.set_index("run_id")[joined_columns(runs)]
        steps, modules, residual = (frame.join(columns, on="run_id") for frame in (steps, modules, residual))
    return Tables(runs, steps, modules, residual)


def derive(runs: pd.DataFrame, found: Mapping[Hashable, str]) -> pd.DataFrame:
    """Add the columns outcome, gap_closed and bits_per_byte to `runs`. found: run_id -> outcome of a finished run."""
    outcome = runs["run_id"].map(found).astype(object)
    return runs.assign(
        outcome=outcome.where(outcome.notna() & (outcome != UNJUDGED), None),
        gap_closed=gap_closed(runs["final_val_loss"], runs["unigram_entropy"], runs["bigram_entropy"]),
        bits_per_byte=runs["final_val_loss"] / math.log(2) / runs["bytes_per_token"],
    )


def update_ratio(modules: pd.DataFrame) -> "pd.Series[float]":
    """Return update_norm / param_norm of each row of `modules`, or null if param_norm is 0."""
    return modules["update_norm"] / modules["param_norm"].where(modules["param_norm"] != 0)


def update_rms(steps: pd.DataFrame, n_params: "pd.Series[float] | float") -> "pd.Series[float]":
    """Return update_norm / (lr sqrt(n_params)) of each row of `steps`, or null if lr is 0."""
    rate = steps["lr"].where(steps["lr"] != 0).astype(np.float64)
    return (steps["update_norm"] / (rate * np.sqrt(n_params))).astype(np.float32)  # stored norms have this type


def stationary_rms(beta1: float) -> float:
    """Return the update_rms of Adam if gradients are independent noise around 0 (Su 2025): 0.229 for beta1 = 0.9."""
    return math.sqrt((1 - beta1) / (1 + beta1))


def joined_columns(runs: pd.DataFrame) -> list[str]:
    """Return the columns of `runs` that are added to the other tables: see `load`."""
    wanted = {*ALWAYS_JOINED, *varying(runs, list(cfg.asked_types()))}
    return [*(c for c in cfg.asked_types() if c in wanted), "outcome"]
