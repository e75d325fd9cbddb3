"""Compare the claims about pre-norm and post-norm in docs/claims.md with the committed studies.

Numbers are computed from the tables of the studies alone. A mean has a 95 % t interval over seeds, and a share has an
exact 95 % interval. A test compares the table that `markdown` returns with docs/claims.md.
"""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from normstudy.analysis.grid import interval_text, markdown_table, share_text
from normstudy.analysis.inference import share_interval
from normstudy.analysis.load import load
from normstudy.analysis.outcomes import FAILED
from normstudy.analysis.pairs import compare_pairs
from normstudy.errors import ConfigError
from normstudy.reproductions.verdicts import exponent, judge

# Study -> column -> the values that the claims compare. A study needs two runs or more of each combination of values.
CELLS: dict[str, dict[str, tuple[str | float, ...]]] = {
    "warmup": {"placement": ("pre", "post"), "peak_lr": (3e-3,), "warmup_steps": (0, 100)},
    "depth": {"placement": ("pre", "post"), "n_layers": (2, 4, 12), "warmup_steps": (0, 100)},
    "peak_lr": {"placement": ("pre", "post"), "peak_lr": (1e-2, 3e-2), "warmup_steps": (0, 100)},
    "rmsnorm": {"norm": ("layernorm", "rmsnorm")},
    "shallow": {"placement": ("pre", "post"), "n_layers": (2, 4)},
    "boundary": {"placement": ("pre", "post")},
    "best": {"placement": ("pre", "post"), "peak_lr": (1e-3, 2e-3, 4e-3, 8e-3), "warmup_steps": (0, 100, 200, 400)},
}
MARGIN = 0.01  # RMSNorm and LayerNorm train alike if mean losses differ by less (nats per token)
OUTCOMES = {"failed": FAILED, "learned": ("learned",)}


class Evidence(NamedTuple):
    """A number for or against a claim."""

    claim: str
    quantity: str
    study: str
    value: float
    low: float  # the low end of the 95 % interval over seeds, or NaN for a p value
    high: float
    seeds: int
    is_share: bool = False  # whether the number is the share of runs that have an outcome

    @property
    def text(self) -> str:
        if self.is_share:
            return share_text(round(self.value * self.seeds), self.seeds, self.low, self.high)
        return interval_text(self.value, self.low, self.high, ".3g")


def first_to_last(modules: pd.DataFrame, step: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Divide each run's first-layer gradient norm of mlp_out at `step` by the last layer's. NaN if none is recorded."""
    rows = modules[(modules["step"] == step) & (modules["module"] == "mlp_out")]
    wide = rows.pivot_table(index="run_id", columns="layer", values="grad_norm")
    wide = wide.reindex(sorted(modules["run_id"].unique()))
    return (wide.iloc[:, 0] / wide.iloc[:, -1]).to_numpy(np.float64)


class _Study:
    """A study that has the runs listed in CELLS. Methods compute evidence. query: a pandas query that selects runs."""

    def __init__(self, results: Path, name: str) -> None:
        self.name, self.tables = name, load(results / name, join=True)
        self.runs, self.modules = self.tables.runs, self.tables.modules
        counts = self.runs.value_counts(list(CELLS[name]))
        for values in itertools.product(*CELLS[name].values()):
            if (n_runs := counts.get(values, 0)) < 2:
                words = " ".join(f"{column}={value}" for column, value in zip(CELLS[name], values, strict=True))
                raise ConfigError(
                    f"{results / name} has {n_runs} runs with {words}, but the claims need at least 2. "
                    f"Train the missing runs: normstudy sweep experiment={name} results_dir={results}"
                )

    def mean(self, claim: str, quantity: str, values: ArrayLike, *, logs: bool = False) -> Evidence:
        """Average a quantity over seeds. values: one per seed. logs: whether `values` are the quantity's logarithms."""
        found = judge(quantity, np.asarray(values, np.float64), None, logs=logs)
        return Evidence(claim, quantity, self.name, found.value, found.low, found.high, found.seeds)

    def ratios(self, claim: str, models: str, query: str, steps: Iterable[int]) -> list[Evidence]:
        """Average `first_to_last` over the queried runs at each step. models: words that name the queried runs."""
        chosen, name = self.modules.query(query), f"first/last-layer gradient, {models}, step"
        return [self.mean(claim, f"{name} {step}", np.log(first_to_last(chosen, step)), logs=True) for step in steps]

    def share(self, claim: str, outcome: str, models: str, query: str) -> Evidence:
        """Return the share of the queried runs whose outcome is in OUTCOMES[outcome]."""
        runs = self.runs.query(query)
        k, n = int(runs["outcome"].isin(OUTCOMES[outcome]).sum()), len(runs)
        return Evidence(claim, f"runs {outcome}, {models}", self.name, k / n, *share_interval(k, n), n, is_share=True)

    def compared(self, runs: pd.DataFrame, by: str) -> dict[Any, Any]:
        """Compare `runs`, which differ only in the seed and in `by`. Return the only row of `compare_pairs`."""
        (row,) = compare_pairs(runs, self.tables.steps, by, margin=MARGIN).to_dict("records")
        return row

    def difference(self, claim: str, quantity: str, runs: pd.DataFrame, by: str) -> Evidence:
        """Return the mean loss difference over pairs of runs. A pair in which a run failed does not count."""
        row = self.compared(runs, by)
        return Evidence(claim, quantity, self.name, row["difference"], row["ci_low"], row["ci_high"], row["compared"])


def findings(results: Path) -> list[Evidence]:
    """Compute the evidence for all claims. Raises ConfigError if the folder `results` lacks runs listed in CELLS."""
    warmup, depth, peak_lr, rmsnorm, shallow, boundary, best = (_Study(results, name) for name in CELLS)
    last = int(warmup.modules["step"].max())
    post, deep = "placement == 'post' and peak_lr == 0.003", "n_layers == 12 and warmup_steps == 0"
    first = depth.modules.query(f"placement == 'pre' and {deep} and module == 'mlp_out' and step == 0")
    profile = first.pivot_table(index="layer", columns="seed", values="grad_norm")
    powers = exponent(profile.index.to_numpy(np.float64) + 1, profile.to_numpy(np.float64))
    return [
        *warmup.ratios("C1", "post, 6 layers, no warmup", f"{post} and warmup_steps == 0", (0, 5, 100, last)),
        *warmup.ratios("C1", "post, 6 layers, warmup 100", f"{post} and warmup_steps == 100", (5, 20, last)),
        *depth.ratios("C1", "post, 12 layers, no warmup", f"placement == 'post' and {deep}", (0, 5, 100, last)),
        *depth.ratios("C2", "pre, 12 layers", f"placement == 'pre' and {deep}", (0, last)),
        depth.mean("C2", "exponent of the gradient in the layer's index, pre, 12 layers, step 0", powers),
        *(
            warmup.share("C3a", "failed", f"post, 6 layers, 0.003, warmup {n}", f"{post} and warmup_steps == {n}")
            for n in (0, 100)
        ),
        *(
            study.difference(
                "C3a", f"loss with warmup 100 minus without, pre, 6 layers, {rate:g}",
                study.runs.query("placement == 'pre' and peak_lr == @rate"), "warmup_steps",
            )
            for rate, study in ((3e-3, warmup), (1e-2, peak_lr), (3e-2, peak_lr))
        ),
        *(
            study.share("C3a", outcome, f"{placement}, 12 layers, 0.001, {models}", f"placement == '{placement}'{cell}")
            for study, models, cell in ((depth, "warmup 0", f" and {deep}"), (boundary, "warmup 100", ""))
            for placement in ("post", "pre")
            for outcome in OUTCOMES
        ),
        *(
            shallow.difference(
                "C3b", f"loss of post minus pre at the same rate, {n} layers, 0.001, no warmup",
                shallow.runs[shallow.runs["n_layers"] == n], "placement",
            )
            for n in (2, 4)
        ),
        _best_cells(best), *_same_profile(rmsnorm),
    ]  # fmt: skip


def _best_cells(best: _Study) -> Evidence:
    # A cell is a placement, rate and warmup. Choose each placement's best cell by the seeds that have runs in all
    # cells. The choice biases the losses of these seeds downwards, so only the other seeds measure the difference.
    cell = ["placement", "peak_lr", "warmup_steps"]
    runs = best.runs.assign(failed=best.runs["outcome"].isin(FAILED))
    cells = runs.groupby("seed")[cell].value_counts().groupby("seed").size()
    choosing = runs["seed"].isin(cells.index[cells == cells.max()])
    whole = runs[choosing].groupby(cell).filter(lambda group: not group["failed"].any())
    mean = whole.groupby(cell)["final_val_loss"].mean()
    chosen = [(placement, *mean[placement].idxmin()) for placement in ("post", "pre")]
    words = "; ".join(f"{placement} at {rate:g}, warmup {steps}" for placement, rate, steps in chosen)
    here = pd.MultiIndex.from_frame(runs[cell]).isin(chosen)
    measured = runs[~choosing & here].assign(peak_lr=0.0, warmup_steps=0)  # equal values make one pair of runs per seed
    quantity = f"loss of post minus pre, each at its best cell, 6 layers ({words})"
    return best.difference("C3b", quantity, measured, "placement")


def _same_profile(rmsnorm: _Study) -> list[Evidence]:
    rows = rmsnorm.modules.query("step == 0 and module == 'mlp_out'")
    profile = rows.pivot_table(index=["seed", "layer"], columns="norm", values="grad_norm")
    gradients = "largest relative difference of the layers' gradients at step 0, pre, rmsnorm to layernorm"
    p = f"p of two one-sided tests that this difference lies outside +-{MARGIN:g}"
    row = rmsnorm.compared(rmsnorm.runs, "norm")
    return [
        rmsnorm.mean("C4", gradients, (profile["rmsnorm"] / profile["layernorm"] - 1).abs().groupby("seed").max()),
        rmsnorm.difference("C4", "loss of rmsnorm minus layernorm, pre, 6 layers, 0.003", rmsnorm.runs, "norm"),
        Evidence("C4", p, "rmsnorm", row["equivalent_p"], math.nan, math.nan, row["compared"]),
    ]


def markdown(found: list[Evidence]) -> str:
    """Format the evidence as a Markdown table with one row for each number."""
    rows = [(f.claim, f.quantity, f.text, str(f.seeds), f"`{f.study}`") for f in found]
    header = ("claim", "quantity", "value [95 % interval]", "seeds", "study")
    return "\n".join(markdown_table(header, rows, compact=True)) + "\n"
