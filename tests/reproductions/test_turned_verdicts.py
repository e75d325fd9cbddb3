"""A deliberately wrong input turns each verdict: another placement's data, a shifted exponent, a constant that is off.

The inputs are the committed tables, so that the seeds scatter as they do in truth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from reduced import stored

from normstudy.reproductions.run import REPRODUCTIONS
from normstudy.reproductions.verdicts import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED

Table = pd.DataFrame


def as_variant(name: str, variants: dict[str, str], quantities: dict[str, str] | None = None) -> Table:
    """The rows of a reproduction's table under other names of model or quantity: what is not named is left out."""
    table = stored(name)
    table = table[table["variant"].isin(variants)]
    return table.assign(variant=table["variant"].map(variants), quantity=table["quantity"].replace(quantities or {}))


def scaled(name: str, variant: str, quantity: str, factor: Callable[[Table], np.ndarray | float]) -> Table:
    """A table in which one quantity of one model is multiplied."""
    table = stored(name)
    rows = (table["variant"] == variant) & (table["quantity"] == quantity)
    assert rows.any()
    table.loc[rows, "value"] *= factor(table[rows])
    return table


def power(exponent: float, column: str = "depth") -> Callable[[Table], np.ndarray]:
    return lambda rows: rows[column].to_numpy(float) ** exponent


SIMPLIFIED = "post simplified"

# Reproduction, which of its findings, the wrong table, the verdict that it must give.
TURNED: list[tuple[str, int, Callable[[], Table], str]] = [
    ("xiong-theorem1-pre", 0, lambda: as_variant("xiong-theorem1-post", {"post": "pre"}), NOT_SUPPORTED),
    ("xiong-theorem1-pre", 0, lambda: scaled("xiong-theorem1-pre", "pre", "mlp_out_grad", power(0.3)), NOT_SUPPORTED),
    (
        "xiong-theorem1-post", 0,
        lambda: scaled("xiong-theorem1-post", "post", "mlp_out_grad", power(0.3)),
        NOT_SUPPORTED,
    ),
    (
        "gpt2-init-control", 0,
        lambda: as_variant(
            "gpt2-init-control",
            {
                "pre init=gpt2 embed_init=std": "pre init=normal embed_init=std",
                "pre init=normal embed_init=std": "pre init=gpt2 embed_init=std",
            },
        ),
        NOT_SUPPORTED,
    ),
    (
        "gpt2-init-control", 1,
        lambda: scaled("gpt2-init-control", "pre init=normal embed_init=std", "mlp_out_grad", power(0.5)),
        NOT_SUPPORTED,
    ),
    (
        "xiong-lemma2-post", 0,
        lambda: as_variant("xiong-lemma2-pre", {"pre simplified": SIMPLIFIED}, {"mean_square": "before_norm2"}),
        NOT_SUPPORTED,
    ),
    (
        "xiong-lemma2-post", 0,
        lambda: scaled("xiong-lemma2-post", SIMPLIFIED, "before_norm2", lambda _: 1.07),
        NOT_SUPPORTED,
    ),
    ("xiong-lemma2-pre", 0, lambda: as_variant("peri-variance", {"peri": "pre simplified"}), NOT_SUPPORTED),
    ("xiong-lemma2-pre", 0, lambda: as_variant("lns-variance", {"lns": "pre simplified"}), NOT_SUPPORTED),
    ("xiong-profile-pre", 0, lambda: as_variant("xiong-profile-post", {"post": "pre"}), NOT_SUPPORTED),
    (
        "xiong-profile-post", 0,
        lambda: scaled("xiong-profile-post", "post", "mlp_out_grad", lambda t: (2 / 3) ** ((63 - t["layer"]) / 2)),
        SUPPORTED,
    ),
    (
        "rmsnorm-equals-layernorm", 0,
        lambda: scaled("rmsnorm-equals-layernorm", "pre norm=rmsnorm", "mlp_out_grad", lambda _: 1.2),
        NOT_SUPPORTED,
    ),
    (
        "admin-output-change", 0,
        lambda: scaled("admin-output-change", "post", "output_change", power(-0.3)),
        INCONCLUSIVE,
    ),
    (
        "admin-output-change", 1,
        lambda: scaled("admin-output-change", "pre", "output_change", power(0.7)),
        NOT_SUPPORTED,
    ),
    ("deepnet-constants", 0, lambda: scaled("deepnet-constants", "deepnorm", "alpha", power(1e-5)), NOT_SUPPORTED),
    ("deepnet-constants", 1, lambda: scaled("deepnet-constants", "deepnorm", "gain_out", power(0.25)), NOT_SUPPORTED),
    (
        "deepnet-constants", 1,  # one matrix of one block
        lambda: scaled("deepnet-constants", "deepnorm", "gain_v", lambda t: np.where(t["layer"] == 3, 1.01, 1)),
        NOT_SUPPORTED,
    ),
    ("deepnet-constants", 2, lambda: scaled("deepnet-constants", "deepnorm", "gain_q", power(-0.25)), NOT_SUPPORTED),
    (
        "deepnet-update", 0,
        lambda: as_variant(
            "deepnet-update", {"deepnorm": "deepnorm"},
            {"update_trained": "update_frozen", "update_frozen": "update_trained"},
        ),
        NOT_SUPPORTED,
    ),
    ("peri-variance", 0, lambda: as_variant("lns-variance", {"pre": "peri"}), NOT_SUPPORTED),
    ("lns-variance", 0, lambda: as_variant("lns-variance", {"pre": "lns", "lns": "pre"}), NOT_SUPPORTED),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "wrong", "expected"), TURNED)
def test_turned(name: str, place: int, wrong: Callable[[], Table], expected: str) -> None:
    entry = REPRODUCTIONS[name]
    assert entry.findings(stored(name))[place].verdict != expected
    assert entry.findings(wrong())[place].verdict == expected


def test_every_band_was_turned() -> None:
    banded = {
        (name, place)
        for name, entry in REPRODUCTIONS.items()
        for place, found in enumerate(entry.findings(stored(name)))
        if found.band is not None
    }
    assert banded == {(name, place) for name, place, _, _ in TURNED}
