"""Say on a page how its numbers were made: definitions, rules of outcomes, text, versions and command lines."""

from __future__ import annotations

from typing import Any

import pandas as pd

from normstudy.analysis import outcomes as rules
from normstudy.analysis.select import native
from normstudy.report.numbers import Numbers
from normstudy.report.pack import LOSSES
from normstudy.report.read import Bundle

DEFINITIONS = {
    "loss": "Cross-entropy in nats per token. The final loss is that of the validation windows after the last update.",
    "gap closed": "(H1 - final loss) / (H1 - H2), where H1 and H2 are the text's unigram and bigram cross-entropy: 0 "
    "for a model that knows only how often symbols occur, 1 for one that knows how often pairs do.",
    "grad_norm": "Euclidean norm of the loss gradient of a module's parameters, before any clipping. At step t it is "
    "that of the parameters before update t, so step 0 is the initialization.",
    "update_ratio": "Norm of an update of a module's parameters over the norm of these parameters.",
    "dLoss/dx_l": "Euclidean norm of the loss gradient with respect to the residual stream after block l; l = 0 is the "
    "embedding's output.",
}
OUTCOMES = {
    "diverged": "a loss or a gradient norm is not finite, or the final loss exceeds those of the first step and of "
    "uniform prediction",
    "collapsed": f"closes less than {rules.STUCK_GAP:g} of the gap, and its mean training loss ends at least "
    f"{rules.COLLAPSE_RISE:g} nats above its minimum",
    "unfinished": f"closes less than {rules.LEARNED_GAP:g} of the gap, and its validation loss fell by at least "
    f"{rules.STILL_FALLING:g} nats in its last third",
    "stuck": f"closes less than {rules.STUCK_GAP:g} of the gap",
    "partial": f"closes less than {rules.LEARNED_GAP:g} of the gap",
    "spiked": f"closes the gap, but its mean training loss once rose by at least {rules.SPIKE_RISE:g} nats",
    "learned": "every other finished run",
}
VERSIONS = ("torch", "python", "cpu_capability", "device", "numerics", "git_commit")


def methods(bundle: Bundle, numbers: Numbers, charts: str) -> dict[str, Any]:
    """Return the parts of the section: definitions, outcomes, what is thinned, texts, versions, commands, warnings."""
    done = bundle.runs[bundle.runs["data_sha256"].notna()]
    texts = sorted({(str(native("data", d)), str(s)) for d, s in zip(done["data"], done["data_sha256"], strict=True)})
    probes = "every recorded step" if numbers.probes is None else f"at most {numbers.probes} recorded steps of a run"
    return {
        "definitions": DEFINITIONS, "outcomes": OUTCOMES, "failed": rules.FAILED, "texts": texts,
        "thinned": "Charts show numbers rounded to three significant digits, those below 1e-36 as 1e-36 and those from "
        "1e36 on as infinite. Training losses are shown at at most "
        f"{LOSSES} steps of a logarithmic grid, each as the mean over the steps from 0.9 t to t; gradients and updates "
        f"at {probes}. Sentences, tables and the list of runs rest on all numbers.",
        "versions": [(name, _distinct(bundle.runs[name])) for name in VERSIONS],
        "charts": charts,
        "commands": [(source.name, source.commands) for source in bundle.sources if source.commands],
        "lacks": [line for source in bundle.sources for line in source.lacks],
    }  # fmt: skip


def _distinct(column: pd.Series[Any]) -> str:
    return ", ".join(sorted({str(native(str(column.name), v)) for v in column.dropna()})) or "not recorded"
