"""Register the predictions of papers.

To add a prediction, write a file in predictions/ that defines ENTRY and whose docstring states the source, what is
computed, the band, the rule for the verdict and, if known, why the prediction fails. Then add its name to NAMES.
"""

from __future__ import annotations

from importlib import import_module

from normstudy.reproductions.entry import Reproduction

# Predictions in the order in which they are listed and printed. File names have underscores in place of hyphens.
NAMES = (
    "xiong-theorem1-pre", "xiong-theorem1-post", "gpt2-init-control", "xiong-lemma2-post", "xiong-lemma2-pre",
    "xiong-profile-pre", "xiong-profile-post", "rmsnorm-equals-layernorm", "admin-output-change", "deepnet-constants",
    "deepnet-update", "peri-variance", "lns-variance", "mixln-balance", "reordered-needs-qknorm",
)  # fmt: skip
REPRODUCTIONS: dict[str, Reproduction] = {
    name: import_module(f"normstudy.reproductions.predictions.{name.replace('-', '_')}").ENTRY for name in NAMES
}
