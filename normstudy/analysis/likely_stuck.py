"""Count the running runs that look stuck, judged by their stored gradients. docs/early_warning.md explains the rule.

A run's first rows are stored when the run has trained its first `schema.window_size` steps.
"""

import functools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from normstudy.errors import ConfigError
from normstudy.study import parquet, schema, whole

COLUMNS = (*whole.COLUMNS, "warmup_steps")  # the columns of `runs` that `LikelyStuck.count` needs


class Rule(NamedTuple):
    """The content of early_warning.json, which scripts/early_warning.py computes from the committed studies."""

    step: int  # a run is judged at its first probed step that is at least `step` and comes after the warmup
    threshold: float  # a run looks stuck if the ratio of the first and last layers' gradient norms is at most this
    looked: int  # how many runs of the committed studies looked stuck, by thresholds learned from other runs
    stuck: int  # how many of the runs that looked stuck ended stuck


@functools.cache
def rule() -> Rule:
    return Rule(**json.loads(Path(__file__).with_name("early_warning.json").read_text()))


def text_of(n: int) -> str:
    """Describe `n` running runs that look stuck. State how many such runs of past studies were stuck at the end."""
    step, _, looked, stuck = rule()
    seen = f"of those that looked so at step {step} or after their warmup, {stuck} of {looked} were"
    return f"{n:,} likely stuck ({seen})"


def step_of(run: whole.Expected, warmup_steps: int) -> int | None:
    """Return the step at which a run is judged, or None if the run is too short."""
    probed = whole.steps_of("modules", run, run.n_steps - 1)
    late = probed[probed >= max(rule().step, warmup_steps)]
    return int(late[0]) if len(late) else None


class LikelyStuck:
    """Count a study's runs that look stuck. Judge each run once, when its rows at the step `step_of` are on disk."""

    def __init__(self, study_dir: Path) -> None:
        self._folder = study_dir / "tables" / "modules"
        self._looks: dict[str, bool] = {}  # run_id -> whether the run looks stuck

    def count(self, runs: Iterable[tuple[Any, ...]]) -> int:
        """Return how many runs look stuck. Ignore runs without stored rows. runs: each run's values of COLUMNS."""
        return sum(self._looks_stuck(whole.Expected(*values), warmup_steps) for *values, warmup_steps in runs)

    def _looks_stuck(self, run: whole.Expected, warmup_steps: int) -> bool:
        if run.name in self._looks or not (self._folder / schema.window_name(run.name, 0)).exists():
            return self._looks.get(run.name, False)
        step = step_of(run, warmup_steps)
        window = (step or 0) // schema.window_size(run.n_steps, run.source)
        path = self._folder / schema.window_name(run.name, window)
        if not path.exists():
            return False
        try:
            rows = pa.concat_tables(parquet.read_file(path, schema.SCHEMAS["modules"])).filter(pc.field("step") == step)
        except (ConfigError, OSError, pa.ArrowException):  # a file is damaged: `normstudy check` names it
            rows = schema.SCHEMAS["modules"].empty_table()
        if not len(rows) and run.source == schema.WATCH:  # the watch will replace this file by a longer file
            return False
        rows = rows.filter((pc.field("module") == "mlp_out") & pc.field("grad_norm").is_valid())
        norm = {r["layer"]: r["grad_norm"] for r in rows.to_pylist()}
        first, last = norm.get(0, math.inf), norm.get(run.n_layers - 1, 0.0)
        return self._looks.setdefault(run.name, last > 0 and first <= rule().threshold * last)
