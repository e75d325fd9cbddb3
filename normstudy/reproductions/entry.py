"""The parts of a reproduction: sizes, the models and measurements it needs, and the entry itself.

A reproduction has two stages that share only a table. The first measures with torch (measure.py); the second judges and
draws from the table alone (verdicts.py, plots.py). Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from normstudy.config import ModelConfig
from normstudy.reproductions.verdicts import Finding

MEASUREMENT = 1  # raised when a change of measure.py gives the same need other values: tables are then measured again


@dataclass(frozen=True)
class Sizes:
    """The sizes, depths and numbers of seeds that all reproductions of tier 0 share."""

    d_model: int = 128
    n_heads: int = 4
    batch_size: int = 4  # sequences of random tokens, whose targets are the next random tokens
    seq_len: int = 64
    vocab_size: int = 256
    depths: tuple[int, ...] = (8, 16, 32, 64)
    seeds: int = 5
    many_seeds: int = 20  # for entries where five leave an interval about as wide as the band

    @property
    def deepest(self) -> int:
        """The last of the depths."""
        return self.depths[-1]


@dataclass(frozen=True)
class Variant:
    """A model except for its depth and seed. It has the sizes of `Sizes`, and no biases."""

    placement: str
    norm: str = "auto"
    init: str = "auto"
    embed_init: str = "unit"
    qk_norm: str = "auto"
    simplified: bool = False  # the block of Xiong et al.'s theory: one head, Q = K = 0, d_ff = d_model, ReLU

    @property
    def name(self) -> str:
        """`pre`, `pre init=gpt2 embed_init=std`, `post simplified`: the column `variant` of the tables."""
        parts = [self.placement]
        for f in dataclasses.fields(self)[1:]:
            value = getattr(self, f.name)
            if value != f.default:
                parts.append(f.name if value is True else f"{f.name}={value}")
        return " ".join(parts)


PRE = Variant("pre")
POST = Variant("post")


@dataclass(frozen=True)
class Need:
    """One measurement of one model over depths and seeds 0, 1, ...; kind: a key of measure.MEASUREMENTS."""

    kind: str
    variant: Variant
    depths: tuple[int, ...]
    seeds: int


@dataclass(frozen=True)
class Reproduction:
    """One prediction of a paper: the measurements it needs, its findings from their table, and its figure.

    prediction: one line. The docstring of the entry's module has the source, what is computed, the expected band, the
    rule of the verdict, and the reason of a failure where it is known.
    """

    tier: int
    source: str
    prediction: str
    needs: Callable[[Sizes], list[Need]]
    findings: Callable[[pd.DataFrame], list[Finding]]
    draw: Callable[[pd.DataFrame, list[Finding]], Figure]


def model_config(variant: Variant, depth: int, sizes: Sizes) -> ModelConfig:
    """The configuration of a model: no biases, an output matrix of variance 1/d_model."""
    simplified = variant.simplified
    return ModelConfig(
        placement=variant.placement, norm=variant.norm, init=variant.init, embed_init=variant.embed_init,
        qk_norm=variant.qk_norm, n_layers=depth, d_model=sizes.d_model, n_heads=1 if simplified else sizes.n_heads,
        d_ff=sizes.d_model if simplified else None, activation="relu" if simplified else "gelu", biases=False,
        unembed_std=sizes.d_model**-0.5,
    )  # fmt: skip


Reading = tuple[str, int | None, int, float]  # quantity, layer, seed, value


@dataclass(frozen=True)
class Job:
    """One measurement of one model at one depth, for some seeds at once."""

    kind: str
    variant: Variant
    depth: int
    seeds: tuple[int, ...]
    sizes: Sizes
