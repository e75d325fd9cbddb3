"""Determine each run's outcome, such as `learned` or `stuck`, from the run's losses. No table stores outcomes.

Losses and entropies are in nats per token. H1 and H2 are the text's unigram and bigram cross-entropy.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import pandas as pd

from normstudy.config import late_step

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.intp]]
Loss = TypeVar("Loss", float, "pd.Series[float]")

UNJUDGED = "unjudged"  # stands for a missing outcome
OUTCOMES = ("learned", "partial", "stuck", "collapsed", "spiked", "diverged", "unfinished", UNJUDGED)
FAILED = ("stuck", "collapsed", "diverged")  # outcomes of runs whose training failed
MEANING = {  # outcome -> what the user can do about it
    "unfinished": "the loss was still falling when the run ended; train longer to see the outcome",
    UNJUDGED: "the tables lack rows of the run, as a warning says, or an older version did not evaluate it at step 2 "
    "n_steps // 3: train it again; or it was watched without its text's entropies, or without a last val_loss",
}

# These thresholds separate the outcomes. The measured values are in parentheses. "Mean training loss" is the mean
# over the last `mean_window` steps.
STUCK_GAP = 0.4  # a run that closes less than this fraction of H1 - H2 is stuck (stuck runs: at most 0.34)
LEARNED_GAP = 0.75  # a run that closes this fraction of H1 - H2 has learned (learned runs: at least 0.84)
COLLAPSE_RISE = 0.4  # nats; a run collapsed if its mean training loss ends this far above the minimum
SPIKE_RISE = 0.4  # nats; a run spiked if its mean training loss rose by this much or more (other runs: at most 0.23)
STILL_FALLING = 0.05  # nats; a run is unfinished if its loss falls this far in its last third (stuck: at most 0.014)
WINDOW_TOKENS = 10_240  # training tokens in the window of the mean training loss

RUN_COLUMNS = (
    "n_steps", "batch_size", "seq_len", "ln_vocab", "unigram_entropy", "bigram_entropy", "late_val_loss",
    "final_val_loss", "nonfinite_step",
)  # fmt: skip


def gap_closed(final_val_loss: Loss, unigram_entropy: Loss, bigram_entropy: Loss) -> Loss:
    """Return (H1 - final validation loss) / (H1 - H2): 0 at the unigram entropy, 1 at the bigram entropy."""
    return (unigram_entropy - final_val_loss) / (unigram_entropy - bigram_entropy)


def mean_window(n_steps: int, batch_size: int, seq_len: int) -> int:
    """Return the number of steps over which training losses are averaged: at least 1, at most a quarter of the run."""
    return max(1, min(n_steps // 4, round(WINDOW_TOKENS / (batch_size * seq_len))))


def trailing_mean(values: Floats, window: int) -> Floats:
    """Return the mean of every `window` consecutive values. For fewer values, return an empty array."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray((sums[window:] - sums[:-window]) / window)


def outcome(
    train_loss: Floats,
    *,
    first_val_loss: float,
    late_val_loss: float,
    final_val_loss: float,
    window: int,
    ln_vocab: float,
    unigram_entropy: float,
    bigram_entropy: float,
    nonfinite: bool = False,
) -> str:
    """Return a finished run's outcome: the first outcome whose condition is true.

    train_loss: one loss per step. first_val_loss, late_val_loss: the losses at step 0 and late_step(n_steps), or NaN.
    No other evaluation counts, so the outcome does not depend on eval.every. final_val_loss: the loss after the last
    update, or NaN. window: number of steps in the mean training loss. nonfinite: whether a training loss, a gradient
    norm or the final loss was not finite.
    """
    if nonfinite or not np.isfinite(train_loss).all() or not np.isfinite(final_val_loss):
        return "diverged"
    if final_val_loss > np.fmax(ln_vocab, first_val_loss):
        return "diverged"
    g = gap_closed(final_val_loss, unigram_entropy, bigram_entropy)
    mean = trailing_mean(train_loss, window)
    if g < STUCK_GAP and len(mean) and mean[-1] - mean.min() >= COLLAPSE_RISE:
        return "collapsed"
    if g < LEARNED_GAP and np.isnan(late_val_loss):
        return UNJUDGED
    if g < LEARNED_GAP and late_val_loss - final_val_loss >= STILL_FALLING:
        return "unfinished"
    if g < STUCK_GAP:
        return "stuck"
    if g < LEARNED_GAP:
        return "partial"
    if len(mean) and (mean - np.minimum.accumulate(mean)).max() >= SPIKE_RISE:
        return "spiked"
    return "learned"


def outcomes(runs: pd.DataFrame, steps: pd.DataFrame) -> "pd.Series[str]":
    """Return run_id -> outcome for every run with status `done`, in the order of `runs`. steps: the runs' rows."""
    done = runs[runs["status"] == "done"]
    codes, names = pd.factorize(steps["run_id"])
    order = np.lexsort((steps["step"].to_numpy(), codes))
    first = np.searchsorted(codes[order], np.arange(len(names) + 1))
    rows = {str(name): order[first[i] : first[i + 1]] for i, name in enumerate(names)}
    train_loss = steps["train_loss"].to_numpy(np.float64)
    wanted = {0, *(late_step(int(n)) for n in done["n_steps"].unique())}
    looks = steps[steps["step"].isin(wanted) & steps["val_loss"].notna()]
    val_loss = dict(zip(zip(looks["run_id"], looks["step"], strict=True), looks["val_loss"].astype(float), strict=True))
    found = dict.fromkeys(done["run_id"], UNJUDGED)
    for name, numbers in zip(done["run_id"], done[list(RUN_COLUMNS)].to_numpy(np.float64), strict=True):
        if name not in rows:  # `whole.read` leaves out a run that lacks rows
            continue
        n_steps, batch_size, seq_len, ln_vocab, unigram_entropy, bigram_entropy, late, final, nonfinite = numbers
        at, is_watched = rows[name], np.isnan(batch_size)  # a watched run has no batch_size
        if is_watched:  # the watched loop may have logged few losses
            late, at = _nearest(steps, at, int(n_steps)), at[~np.isnan(train_loss[at])]
            known = len(at) and not np.isnan([unigram_entropy, bigram_entropy, final]).any()
            if np.isnan(nonfinite) and not known:
                continue
        window = max(1, int(n_steps) // 20) if is_watched else mean_window(int(n_steps), int(batch_size), int(seq_len))
        found[name] = outcome(
            train_loss[at],
            first_val_loss=val_loss.get((name, 0), np.nan),
            late_val_loss=val_loss.get((name, late_step(int(n_steps))), float(np.float32(late))),  # float32, as stored
            final_val_loss=final, window=window, ln_vocab=ln_vocab, unigram_entropy=unigram_entropy,
            bigram_entropy=bigram_entropy, nonfinite=not np.isnan(nonfinite),
        )  # fmt: skip
    return pd.Series(found, index=pd.Index(found, name="run_id", dtype=object), name="outcome", dtype=object)


def _nearest(steps: pd.DataFrame, rows: Ints, n_steps: int) -> float:
    """Return a watched run's loss nearest to late_step in the last two thirds of its steps, or NaN."""
    at, losses = steps["step"].to_numpy()[rows], steps["val_loss"].to_numpy(np.float64)[rows]
    known = np.flatnonzero(~np.isnan(losses) & (at >= n_steps // 3))
    return float(losses[known[np.abs(at[known] - late_step(n_steps)).argmin()]]) if len(known) else float("nan")


def failed_of(found: Iterable[str]) -> tuple[int, int]:
    """Return how many runs failed (FAILED), and how many runs have an outcome."""
    known = [name for name in found if name != UNJUDGED]
    return sum(name in FAILED for name in known), len(known)


def outcome_counts(found: Iterable[str]) -> dict[str, int]:
    """Return outcome -> number of runs for each outcome that occurs, in the order of OUTCOMES."""
    counts = Counter(found)
    return {name: counts[name] for name in OUTCOMES if counts[name]}


def explained(found: Iterable[str]) -> list[str]:
    """Return a line of advice for each outcome that occurs and that has advice in MEANING."""
    return [f"{name}: {MEANING[name]}" for name in outcome_counts(found) if name in MEANING]


def counts_text(found: Iterable[str]) -> str:
    """Format the number of runs with each outcome: "4 learned 1 partial"."""
    return " ".join(f"{n} {name}" for name, n in outcome_counts(found).items())
