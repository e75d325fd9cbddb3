"""Describe each comparison of runs in a sentence, with the numbers that `normstudy compare` prints."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from normstudy.analysis import compare, grid, inference, pairs
from normstudy.analysis.grid import Value, count_text, interval_text, share_text
from normstudy.analysis.outcomes import FAILED
from normstudy.analysis.select import native
from normstudy.errors import ConfigError
from normstudy.report.read import Bundle

LEARNED = ("learned", "spiked")  # outcomes that count as learning
FIRST = ("warmup_steps", "placement", "norm", "n_layers", "peak_lr")  # the columns by which a page compares first


class Answer(NamedTuple):
    """The comparison of runs that differ in the column `by`: the rows of `compare` as sentences and as a table."""

    by: str
    summary: str
    sentences: tuple[str, ...]
    table: str
    heads: tuple[str, ...]


def answers(bundle: Bundle) -> list[Answer]:
    """Compare pairs of runs that differ in one column, for each varying column. Columns of FIRST come first.

    If any study is a search, return no comparisons: its runs form no pairs, and the page shows critical values instead.
    """
    fields = [c for c in bundle.fields if c in pairs.comparable_columns() and not bundle.searched]
    fields.sort(key=lambda c: FIRST.index(c) if c in FIRST else len(FIRST))
    steps = bundle.steps.assign(run_id=bundle.steps["key"])
    runs = bundle.runs.assign(run_id=bundle.runs["key"])
    found = []
    for by in fields:
        try:
            table = pairs.compare_pairs(runs, steps, by)
        except ConfigError:  # no runs form a pair, for example if each text has its own value
            continue
        heads = tuple(map(" ".join, compare.heads(table)))
        said = tuple(sentence(row, table, bundle.names) for row in table.to_dict("records"))
        found.append(Answer(by, _summary(table), said, compare.render(table, "table"), heads))
    return found


def _summary(table: pd.DataFrame) -> str:
    """Count significant results: `4 comparisons; the shares of failed runs differ in 1, the losses in 2`."""
    count = count_text(len(table), "comparison")
    shares = int((table["failed_holm"] <= inference.ALPHA).sum())
    losses = int((table["loss_verdict"].str.startswith(("lower", "higher"))).sum())
    return f"{count}; the shares of failed runs differ in {shares}, the losses in {losses}"


def sentence(row: Mapping[Hashable, Any], table: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Describe one row of a comparison in a sentence: how the runs of both arms ended, and the verdicts."""
    by = str(row["by"])
    cells = {str(c): row[c] for c in table.columns if c not in pairs.RESULTS}
    place = grid.title({c: native(c, v) for c, v in cells.items()}, names)
    base = f"{_arm(by, row['baseline'], names)}: {_ends(row, 'baseline_')}"
    arm = f"{_arm(by, row['arm'], names)}: {_ends(row, '')}"
    return f"{place + ', ' if place else ''}{base}; {arm}; {_verdict(row)}."


def _arm(by: str, value: Value, names: Mapping[str, str]) -> str:
    if by == "warmup_steps":
        return f"with {count_text(int(value), 'step')}" if value else "without warmup"
    return grid.title({by: value}, names)


def _ends(row: Mapping[Hashable, Any], arm: str) -> str:
    """Describe how an arm's runs ended: `5 of 5 stuck [48, 100 %]`, or `4 of 5 learn [28, 99 %], none fails`."""
    n, failed = row[f"{arm}runs"], row[f"{arm}failed"]
    if not n:
        return "no runs with an outcome"
    texts: Sequence[str] = row[f"{arm}outcomes"].split()
    counts = dict(zip(texts[1::2], map(int, texts[::2]), strict=True))
    learn = sum(counts.get(name, 0) for name in LEARNED)
    if not failed:
        share = share_text(learn, n, *inference.share_interval(learn, n))
        return share.replace(" [", " learn [") + (", none fails" if learn < n else "")
    kinds = [name for name in FAILED if counts.get(name)]
    share = share_text(failed, n, row[f"{arm}failed_low"], row[f"{arm}failed_high"])
    rest = f", {learn} learn{'s' if learn == 1 else ''}" if learn else ""
    return share.replace(" [", f" {kinds[0] if len(kinds) == 1 else 'failed'} [") + rest


def _verdict(row: Mapping[Hashable, Any]) -> str:
    """Describe the verdicts on the shares of failed runs and, if losses were compared, on the difference of losses."""
    said = []
    if not math.isnan(p := row["failed_holm"]):
        differ = "the shares differ" if p <= inference.ALPHA else f"the shares: {row['failed_verdict']}"
        said.append(f"{differ} (p {compare.p_text(p)}, family {row['family']})")
    if not math.isnan(p := row["loss_holm"]):
        change = interval_text(row["difference"], row["ci_low"], row["ci_high"], "+.3f")
        test = f"{row['loss_verdict']}, p {compare.p_text(p)}, family {row['family']}"
        said.append(f"loss {change} in {count_text(row['compared'], 'pair')} ({test})")
    return "; ".join(said) or "no test: all ended alike, or the seeds are too few"
