"""What a reproduction is made of: the setting, the models and measurements it needs, and the entry itself.

A reproduction has two stages that share nothing but a table. The first measures, with torch (measure.py); the second
judges and draws, from the table alone (verdicts.py, draw.py). Nothing here needs torch.
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
class Setting:
    """What all reproductions of tier 0 share: sizes, depths, and how many seeds."""

    d_model: int = 128
    n_heads: int = 4
    batch_size: int = 4  # sequences of random tokens, whose targets are the next random tokens
    seq_len: int = 64
    vocab_size: int = 256
    depths: tuple[int, ...] = (8, 16, 32, 64)
    seeds: int = 5
    many_seeds: int = 20  # where five leave an interval about as wide as the band

    @property
    def deepest(self) -> int:
        """The last of the depths."""
        return self.depths[-1]


@dataclass(frozen=True)
class Variant:
    """A model up to its depth and seed. What is not named here is the setting's, without biases."""

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
    """One prediction of a paper: what it needs measured, what follows from the table, and its figure.

    prediction: one line. The module's docstring says what is computed, the expected band, the rule of the verdict,
    and why, where the reason of a failure is known.
    """

    tier: int
    source: str
    prediction: str
    needs: Callable[[Setting], list[Need]]
    findings: Callable[[pd.DataFrame], list[Finding]]
    draw: Callable[[pd.DataFrame, list[Finding]], Figure]


def model_config(variant: Variant, depth: int, setting: Setting) -> ModelConfig:
    """The configuration of a model: no biases, unit embeddings, an output matrix of variance 1/d_model."""
    return ModelConfig(
        placement=variant.placement,
        norm=variant.norm,
        init=variant.init,
        embed_init=variant.embed_init,
        qk_norm=variant.qk_norm,
        n_layers=depth,
        d_model=setting.d_model,
        n_heads=1 if variant.simplified else setting.n_heads,
        d_ff=setting.d_model if variant.simplified else None,
        activation="relu" if variant.simplified else "gelu",
        biases=False,
        unembed_std=setting.d_model**-0.5,
    )


pass


Row = tuple[str, int | None, int, float]  # quantity, layer, seed, value


@dataclass(frozen=True)
class Job:
    """One measurement of one model at one depth, for some seeds at once."""

    kind: str
    variant: Variant
    depth: int
    seeds: tuple[int, ...]
    setting: Setting
