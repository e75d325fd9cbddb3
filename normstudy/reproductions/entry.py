"""Define what a reproduction consists of. Measuring needs torch. Judging and drawing need only the stored table."""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from normstudy.config import ModelConfig
from normstudy.reproductions.verdicts import Finding, Table

MEASUREMENT = 1  # increase it if measure.py gives new values: all stored tables are then measured again


class Sizes(NamedTuple):
    """The model sizes, depths and numbers of seeds of all reproductions."""

    d_model: int = 128
    n_heads: int = 4
    batch_size: int = 4  # sequences of random tokens. The target of a token is the next token
    seq_len: int = 64
    vocab_size: int = 256
    depths: tuple[int, ...] = (8, 16, 32, 64)  # in increasing order
    seeds: int = 5
    many_seeds: int = 20  # number of seeds if the interval over five seeds is about as wide as the band


class Variant(NamedTuple):
    """All settings of a model except its sizes, depth and seed. No model has biases."""

    placement: str
    norm: str = "auto"
    init: str = "auto"
    embed_init: str = "unit"
    qk_norm: str = "auto"
    simplified: bool = False  # the block of Xiong et al.'s theory: one head, Q = K = 0, d_ff = d_model, ReLU

    @property
    def name(self) -> str:
        """Return the placement and the non-default settings as text, such as `pre init=gpt2 embed_init=std`."""
        given = {k: getattr(self, k) for k, default in self._field_defaults.items() if getattr(self, k) != default}
        return " ".join([self.placement, *(k if value is True else f"{k}={value}" for k, value in given.items())])


PRE = Variant("pre")
POST = Variant("post")


class Need(NamedTuple):
    """A requested measurement of a model at several depths, for the seeds 0 to `seeds` - 1."""

    kind: str  # the kind of measurement, a key of measure.MEASUREMENTS
    variant: Variant
    depths: tuple[int, ...]
    seeds: int


class Reproduction(NamedTuple):
    """A paper's prediction, stated in one line, and the functions that test the prediction."""

    source: str
    prediction: str
    needs: Callable[[Sizes], list[Need]]  # lists the measurements to make
    findings: Callable[[Table], list[Finding]]  # judges the prediction from the table of measurements
    draw: Callable[[Table, list[Finding]], Figure]


def needing(*models: tuple[str, Variant], deepest: bool = False, many: bool = False) -> Callable[[Sizes], list[Need]]:
    """Return a Reproduction's `needs`, for (kind, variant) pairs. deepest: largest depth only. many: use many_seeds."""
    return lambda sizes: [
        Need(kind, variant, sizes.depths[-1:] if deepest else sizes.depths, sizes.many_seeds if many else sizes.seeds)
        for kind, variant in dict.fromkeys(models)
    ]


def model_config(variant: Variant, depth: int, sizes: Sizes) -> ModelConfig:
    """Return a model's configuration. The standard deviation of initial output weights (unembed) is d_model^-0.5."""
    simplified = variant.simplified
    return ModelConfig(
        placement=variant.placement, norm=variant.norm, init=variant.init, embed_init=variant.embed_init,
        qk_norm=variant.qk_norm, n_layers=depth, d_model=sizes.d_model, n_heads=1 if simplified else sizes.n_heads,
        d_ff=sizes.d_model if simplified else None, activation="relu" if simplified else "gelu", biases=False,
        unembed_std=sizes.d_model**-0.5,
    )  # fmt: skip


Reading = tuple[str, int | None, int, float]  # quantity, layer (None: entire model), seed, value


class Job(NamedTuple):
    """A requested measurement of a model at one depth, for one or more seeds at once."""

    kind: str
    variant: Variant
    depth: int
    seeds: tuple[int, ...]
    sizes: Sizes
