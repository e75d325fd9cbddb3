"""Compare the claims about pre-norm and post-norm in docs/claims.md with the committed studies.

Each claim has numbers with 95 % intervals over seeds, computed from the tables of the studies alone: t intervals of
means, exact intervals of shares. `markdown` formats the numbers, and a test compares its output with docs/claims.md.
"""

from __future__ import annotations

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
from normstudy.analysis.load import Tables, load
from normstudy.analysis.outcomes import FAILED
from normstudy.analysis.pairs import compare_pairs
from normstudy.errors import ConfigError
from normstudy.reproductions.verdicts import exponent, judge

HEADLINE_LR = 3e-3
SHALLOW, DEEP = 6, 12  # layers

# Study -> column -> the values that the claims compare. Every combination of values needs at least two runs.
CELLS: dict[str, dict[str, tuple[str | float, ...]]] = {
    "warmup": {"placement": ("pre", "post"), "peak_lr": (HEADLINE_LR,), "warmup_steps": (0, 100)},
    "depth": {"placement": ("pre", "post"), "n_layers": (2, 4, DEEP), "warmup_steps": (0, 100)},
    "peak_lr": {"placement": ("pre", "post"), "peak_lr": (1e-2, 3e-2), "warmup_steps": (0, 100)},
    "rmsnorm": {"norm": ("layernorm", "rmsnorm")},
    "shallow": {"placement": ("pre", "post"), "n_layers": (2, 4)},
    "boundary": {"placement": ("pre", "post")},
    "best": {"placement": ("pre", "post"), "peak_lr": (1e-3, 2e-3, 4e-3, 8e-3), "warmup_steps": (0, 100, 200, 400)},
}
MARGIN = 0.01  # nats per token: RMSNorm and LayerNorm train alike if their mean losses differ by less


class Evidence(NamedTuple):
    """Hold a number for or against a claim.

    low, high: the ends of the number's 95 % interval over seeds, or NaN if the number is a p value. is_share: whether
    the number is the share of runs that have an outcome.
    """

    claim: str
    quantity: str
    study: str
    value: float
    low: float
    high: float
    seeds: int
    is_share: bool = False

    @property
    def text(self) -> str:
        if self.is_share:
            return share_text(round(self.value * self.seeds), self.seeds, self.low, self.high)
        return interval_text(self.value, self.low, self.high, ".3g")


def findings(results: Path) -> list[Evidence]:
    """Compute the evidence for all claims. Raises a ConfigError if the folder `results` lacks runs listed in CELLS."""
    warmup, depth, peak_lr, rmsnorm, shallow, boundary, best = (_whole(results, study) for study in CELLS)
    return [
        *_vanishing(warmup, depth), *_clean_path(depth), *_needs_warmup(warmup, peak_lr),
        *_at_the_boundary(depth, boundary), *_post_can_win(shallow, best), *_same_profile(rmsnorm),
    ]  # fmt: skip


def _whole(results: Path, study: str) -> Tables:
    tables = load(results / study, join=True)
    names = list(CELLS[study])
    counts = tables.runs.value_counts(names)
    for values in itertools.product(*CELLS[study].values()):
        n_runs = counts.get(values, 0)
        if n_runs < 2:
            words = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise ConfigError(
                f"{results / study} has {n_runs} runs with {words}, but the claims need at least 2. "
                f"Train the missing runs: normstudy sweep experiment={study} results_dir={results}"
            )
    return tables


def first_to_last(modules: pd.DataFrame, step: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Divide each run's first-layer mlp_out gradient norm at `step` by its last-layer norm. Missing steps give NaN."""
    rows = modules[(modules["step"] == step) & (modules["module"] == "mlp_out")]
    wide = rows.pivot_table(index="run_id", columns="layer", values="grad_norm")
    wide = wide.reindex(sorted(modules["run_id"].unique()))
    return (wide.iloc[:, 0] / wide.iloc[:, -1]).to_numpy(np.float64)


def _ratios(claim: str, name: str, study: str, modules: pd.DataFrame, steps: Iterable[int]) -> list[Evidence]:
    quantity = f"first/last-layer gradient, {name}, step"
    return [
        _evidence(claim, f"{quantity} {step}", study, np.log(first_to_last(modules, step)), logs=True) for step in steps
    ]


def _vanishing(warmup: Tables, depth: Tables) -> list[Evidence]:
    post = warmup.modules.query("placement == 'post' and peak_lr == @HEADLINE_LR")
    deep = depth.modules.query("placement == 'post' and n_layers == @DEEP and warmup_steps == 0")
    without, with_warmup = post.query("warmup_steps == 0"), post.query("warmup_steps == 100")
    last = int(post["step"].max())
    return [
        *_ratios("C1", f"post, {SHALLOW} layers, no warmup", "warmup", without, (0, 5, 100, last)),
        *_ratios("C1", f"post, {SHALLOW} layers, warmup 100", "warmup", with_warmup, (5, 20, last)),
        *_ratios("C1", f"post, {DEEP} layers, no warmup", "depth", deep, (0, 5, 100, last)),
    ]


def _clean_path(depth: Tables) -> list[Evidence]:
    pre = depth.modules.query("placement == 'pre' and n_layers == @DEEP and warmup_steps == 0 and module == 'mlp_out'")
    profile = pre.query("step == 0").pivot_table(index="layer", columns="seed", values="grad_norm")
    powers = exponent(profile.index.to_numpy(np.float64) + 1, profile.to_numpy(np.float64))
    return [
        *_ratios("C2", f"pre, {DEEP} layers", "depth", pre, (0, int(pre["step"].max()))),
        _evidence("C2", f"exponent of the gradient in the layer's index, pre, {DEEP} layers, step 0", "depth", powers),
    ]


def _needs_warmup(warmup: Tables, peak_lr: Tables) -> list[Evidence]:
    post = warmup.runs.query("placement == 'post' and peak_lr == @HEADLINE_LR")
    out = []
    for steps in (0, 100):
        name = f"runs failed, post, {SHALLOW} layers, {HEADLINE_LR:g}, warmup {steps}"
        out.append(_share("C3a", name, "warmup", post[post["warmup_steps"] == steps], FAILED))
    at = ((HEADLINE_LR, "warmup", warmup), (1e-2, "peak_lr", peak_lr), (3e-2, "peak_lr", peak_lr))
    for rate, study, tables in at:
        name = f"loss with warmup 100 minus without, pre, {SHALLOW} layers, {rate:g}"
        runs = tables.runs.query("placement == 'pre' and peak_lr == @rate")
        out.append(_difference("C3a", name, study, runs, tables.steps, "warmup_steps"))
    return out


def _at_the_boundary(depth: Tables, boundary: Tables) -> list[Evidence]:
    out = []
    deep = depth.runs.query("n_layers == @DEEP and warmup_steps == 0")
    for steps, study, runs in ((0, "depth", deep), (100, "boundary", boundary.runs)):
        for placement in ("post", "pre"):
            here = runs[runs["placement"] == placement]
            for word, outcomes in (("failed", FAILED), ("learned", ("learned",))):
                name = f"runs {word}, {placement}, {DEEP} layers, 0.001, warmup {steps}"
                out.append(_share("C3a", name, study, here, outcomes))
    return out


def _post_can_win(shallow: Tables, best: Tables) -> list[Evidence]:
    out = []
    for n_layers in (2, 4):
        name = f"loss of post minus pre at the same rate, {n_layers} layers, 0.001, no warmup"
        runs = shallow.runs.query("n_layers == @n_layers")
        out.append(_difference("C3b", name, "shallow", runs, shallow.steps, "placement"))
    # The seeds that every cell has choose each placement's best cell, because they flatter it; the others measure it.
    cell = ["placement", "peak_lr", "warmup_steps"]
    runs = best.runs.assign(failed=best.runs["outcome"].isin(FAILED))
    cells = runs.groupby("seed")[cell].value_counts().groupby("seed").size()
    choosing = runs["seed"].isin(cells.index[cells == cells.max()])
    whole = runs[choosing].groupby(cell).filter(lambda group: not group["failed"].any())
    mean = whole.groupby(cell)["final_val_loss"].mean()
    chosen = [(placement, *mean[placement].idxmin()) for placement in ("post", "pre")]
    words = "; ".join(f"{placement} at {rate:g}, warmup {steps}" for placement, rate, steps in chosen)
    name = f"loss of post minus pre, each at its best cell, {SHALLOW} layers ({words})"
    here = pd.MultiIndex.from_frame(runs[cell]).isin(chosen)
    measured = runs[~choosing & here].assign(peak_lr=0.0, warmup_steps=0)  # the two cells count as one, and form pairs
    return [*out, _difference("C3b", name, "best", measured, best.steps, "placement")]


def _same_profile(rmsnorm: Tables) -> list[Evidence]:
    rows = rmsnorm.modules.query("step == 0 and module == 'mlp_out'")
    profile = rows.pivot_table(index=["seed", "layer"], columns="norm", values="grad_norm")
    relative = (profile["rmsnorm"] / profile["layernorm"] - 1).abs().groupby("seed").max()
    gradients = "largest relative difference of the layers' gradients at step 0, pre, rmsnorm to layernorm"
    losses = f"loss of rmsnorm minus layernorm, pre, {SHALLOW} layers, {HEADLINE_LR:g}"
    row = _compared(rmsnorm.runs, rmsnorm.steps, "norm")
    p = f"p of two one-sided tests that this difference lies outside +-{MARGIN:g}"
    return [
        _evidence("C4", gradients, "rmsnorm", relative),
        _difference("C4", losses, "rmsnorm", rmsnorm.runs, rmsnorm.steps, "norm"),
        Evidence("C4", p, "rmsnorm", row["equivalent_p"], math.nan, math.nan, row["compared"]),
    ]


def _compared(runs: pd.DataFrame, steps: pd.DataFrame, by: str) -> dict[Any, Any]:
    """Compare two arms of one cell; returns the row of `compare_pairs`."""
    (row,) = compare_pairs(runs, steps, by, margin=MARGIN).to_dict("records")
    return row


def _difference(claim: str, quantity: str, study: str, runs: pd.DataFrame, steps: pd.DataFrame, by: str) -> Evidence:
    """Return the mean difference of losses among the pairs in which neither run failed."""
    row = _compared(runs, steps, by)
    return Evidence(claim, quantity, study, row["difference"], row["ci_low"], row["ci_high"], row["compared"])


def _share(claim: str, quantity: str, study: str, runs: pd.DataFrame, outcomes: tuple[str, ...]) -> Evidence:
    """Return the share of the runs that have one of these outcomes."""
    k, n = int(runs["outcome"].isin(outcomes).sum()), len(runs)
    return Evidence(claim, quantity, study, k / n, *share_interval(k, n), n, is_share=True)


def _evidence(claim: str, quantity: str, study: str, values: ArrayLike, *, logs: bool = False) -> Evidence:
    """Average a quantity over seeds. values: one per seed; logs: whether the values are the quantity's logarithms."""
    found = judge(quantity, np.asarray(values, np.float64), None, logs=logs)
    return Evidence(claim, quantity, study, found.value, found.low, found.high, found.seeds)


def markdown(found: list[Evidence]) -> str:
    """Format the evidence as a Markdown table with one row for each number."""
    rows = [(f.claim, f.quantity, f.text, str(f.seeds), f"`{f.study}`") for f in found]
    header = ("claim", "quantity", "value [95 % interval]", "seeds", "study")
    return "\n".join(markdown_table(header, rows, compact=True)) + "\n"
