"""The registry of predictions: one small file each, held against measurements.

To add one, write a file in predictions/ that defines ENTRY and whose docstring gives the source, what is computed, the
expected band and the rule, and name it here. tests/reproductions/test_registry.py then checks it like all others.
"""

from __future__ import annotations

from importlib import import_module

from normstudy.reproductions.entry import Reproduction

# In the order in which they are listed and printed; a file has underscores in place of hyphens.
NAMES = (
    "xiong-theorem1-pre", "xiong-theorem1-post", "gpt2-init-control", "xiong-lemma2-post", "xiong-lemma2-pre",
    "xiong-profile-pre", "xiong-profile-post", "rmsnorm-equals-layernorm", "admin-output-change", "deepnet-constants",
    "deepnet-update", "peri-variance", "lns-variance", "mixln-balance", "reordered-needs-qknorm",
)  # fmt: skip
REPRODUCTIONS: dict[str, Reproduction] = {
    name: import_module(f"normstudy.reproductions.predictions.{name.replace('-', '_')}").ENTRY for name in NAMES
}
