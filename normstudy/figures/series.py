"""Prepare losses and gradient norms for figures: select runs, average over seeds, select snapshots of training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from normstudy.figures.look import values
from normstudy.figures.paper import QUANTITIES
from normstudy.figures.study import Panel, Study

SNAPSHOTS = (0, 5, 20, 100)  # steps of snapshots, to which `snapshots` adds the last step


def of_runs(rows: pd.DataFrame, runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Select the rows that belong to `runs`, and add columns of `runs`. This is faster than DataFrame.merge."""
    codes, names = pd.factorize(rows["run_id"])
    place = pd.Index(runs["run_id"]).get_indexer(names)[codes]
    mine = place >= 0
    found = {c: runs[c].array[place[mine]] for c in columns}
    out: pd.DataFrame = rows[mine].assign(**found)
    return out.reset_index(drop=True)


def positive(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that a logarithmic axis can show: rows whose `value` is finite and above zero."""
    found: pd.DataFrame = rows[np.isfinite(rows["value"]) & (rows["value"] > 0)]
    return found


def geometric(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return mid (geometric mean), low, high and n (count) of the finite, positive values in each group of rows."""
    good = positive(rows)
    logs = good.assign(log=np.log(good["value"])).groupby(keys)
    out: pd.DataFrame = logs.agg(log=("log", "mean"), low=("value", "min"), high=("value", "max"), n=("value", "size"))
    return out.assign(mid=np.exp(out["log"])).drop(columns="log").reset_index()


def zeros(study: Study, rows: pd.DataFrame) -> list[str]:
    """Return a note that names the runs and steps with a value of exactly 0, which a logarithmic axis cannot show."""
    gone = rows[rows["value"] == 0]
    if gone.empty:
        return []
    column = study.look.facet or study.look.hue
    runs = study.runs[study.runs["run_id"].isin(gone["run_id"])]
    names = [study.text(column, v) for v in values(runs, column)]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    what = QUANTITIES[study.paper.quantity]
    return [f"a {what} of exactly 0 is not drawn ({', '.join(names[:4])}{more}: step {_span(gone['step'])})"]


def snapshots(rows: pd.DataFrame, last_step: int) -> list[tuple[str, pd.DataFrame]]:
    """Return (title, rows) for each snapshot: at initialization, after 5, 20 and 100 updates, and at the end.

    A snapshot contains each run's last recorded step up to the snapshot's step, without runs that had ended by then.
    The snapshot at the end contains each run's last recorded step with a finite value.
    """
    ends = last_of_run(rows)
    out: list[tuple[str, pd.DataFrame]] = []
    for wanted in [s for s in SNAPSHOTS if s < last_step]:
        below = rows[(rows["step"] <= wanted) & (ends >= wanted)]
        at = below[below["step"] == last_of_run(below)]
        if len(at) and not (out and set(at["step"]) == set(out[-1][1]["step"])):
            out.append((f"step {_span(at['step'])}" + (" (init)" if wanted == 0 else ""), at))
    finite = rows[np.isfinite(rows["value"])]
    last = finite[finite["step"] == last_of_run(finite)]
    if len(last):
        out.append((f"step {_span(last['step'])} (end)", last))
    return out


def last_of_run(rows: pd.DataFrame) -> "pd.Series[int]":
    """Return, for each row, the largest step among the rows of the same run."""
    return rows.groupby("run_id", observed=True)["step"].transform("max")


def _span(steps: "pd.Series[int]") -> str:
    low, high = int(steps.min()), int(steps.max())
    return str(low) if low == high else f"{low}–{high}"


def seed_mean(table: pd.DataFrame, runs: pd.DataFrame, *, log: bool) -> pd.DataFrame:
    """Average `value` over the seeds, for each color (hue), line style (dash) and step. log: use the geometric mean.

    A step at which a run of the group has no value gets no mean, because a mean would hide that this run ended.
    """
    rows = table.assign(value=np.log(table["value"])) if log else table
    mean = rows.groupby(["hue", "dash", "step"], sort=False)["value"].agg(["mean", "size"]).reset_index("step")
    seeds = runs.groupby(["hue", "dash"]).size().reindex(mean.index)
    mean = mean[(mean["size"] == seeds).to_numpy()].rename(columns={"mean": "value"}).reset_index()
    return mean.assign(value=np.exp(mean["value"])) if log else mean


def last_tenth(mean: pd.DataFrame) -> pd.DataFrame:
    """Replace `value` at step `t` by the mean over steps 0.9 t to t. All windows are equally wide on a log axis."""
    sums = np.concatenate([[0.0], np.cumsum(mean["value"])])
    ends = np.arange(1, len(mean) + 1)
    width = 1 + (ends - 1) // 10
    return mean.assign(value=(sums[ends] - sums[ends - width]) / width)


def ends(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return each diverged run's last row in `table`."""
    diverged = runs.loc[runs["outcome"] == "diverged", "run_id"]
    return table[table["run_id"].isin(diverged)].groupby("run_id", observed=True).tail(1)


def entropies(runs: pd.DataFrame) -> list[tuple[str, float]]:
    """Return (name, loss) for uniform, unigram and bigram prediction of the runs' text. Unknown losses are left out."""
    columns = {"ln(vocab)": "ln_vocab", "unigram": "unigram_entropy", "bigram": "bigram_entropy"}
    found = [(name, float(runs[column].iloc[0])) for name, column in columns.items()]
    return [(name, loss) for name, loss in found if not np.isnan(loss)]


def same_text(panels: Sequence[Panel]) -> bool:
    """Return whether all panels have equal text and tokenization, and therefore equal reference losses."""
    return len({tuple(key) for p in panels for key in p.runs[["data_sha256", "ln_vocab"]].to_numpy()}) == 1


def last_step(runs: pd.DataFrame) -> int:
    """Return the last step of the longest run."""
    return int(runs["n_steps"].max()) - 1
