"""Define each parameter's initial mean and standard deviation, and estimate the mean square of the norms' inputs.

This module does not import torch, so a sweep's plan can use it.

Weights are normal with mean 0. All biases, also in norms, start at 0, norm gains at 1, dyt's a at 0.5, rezero's
scale at 0, and admin's omegas at 1 until a profiling pass sets them. A user's own module keeps the values that its
constructor draws. model.init determines the distribution of weight matrices:

| init     | standard deviation of a weight matrix (out, in)                                                      |
|----------|------------------------------------------------------------------------------------------------------|
| xavier   | sqrt(2 / (in + out)) (Glorot & Bengio 2010); Q, K and V count as three separate matrices              |
| normal   | 0.02                                                                                                 |
| gpt2     | 0.02, and 0.02 / sqrt(2 L) for the output projections of attention and MLP (GPT-2)                    |
| deepnorm | xavier; V, O and the MLP's matrices times (8 L)^(-1/4) (arXiv:2203.00555, table 2, decoder only)      |
| sub      | xavier; V, O and the MLP's matrices times sqrt(ln 2 L) (arXiv:2210.06423, decoder only)               |
| tfixup   | xavier; V, O and the MLP's matrices times 0.67 L^(-1/4) (Huang et al. 2020, encoder; it has no decoder-only form) |

The table also applies to the output matrix, unless model.unembed_std is set. model.embed_init determines embeddings:

| embed_init | standard deviation of token and learned position embeddings                                        |
|------------|----------------------------------------------------------------------------------------------------|
| unit       | sqrt(1/2) each, or 1 if no positions are added, so that x_0 has unit variance                       |
| std        | model.embed_std, by default 0.02                                                                   |
| scaled     | model.embed_std, by default d_model^(-1/2); the model multiplies token embeddings by sqrt(d_model)  |
"""  # noqa: E501

import math
from collections.abc import Callable
from functools import partial

from normstudy.config import GATED, ModelConfig, resolve, row_of, sources

Norm = Callable[[float], float]

NORMAL_STD = 0.02
OUTPUT_PROJECTIONS = ("attn.out.weight", "mlp.w2.weight")
VALUE_PATH = ("attn.v.weight", "attn.out.weight", "mlp.w1.weight", "mlp.gate.weight", "mlp.w2.weight")


# The last part of a tensor's name -> the initial value of all its elements.
CONSTANTS = {"gamma": 1.0, "beta": 0.0, "bias": 0.0, "a": 0.5, "omega1": 1.0, "omega2": 1.0, "scale": 0.0}


def distribution(name: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[float, float]:
    """Return the mean and standard deviation of the initial values of a Transformer's tensor `name`."""
    leaf = name.rpartition(".")[2]
    if leaf in ("embed", "pos"):
        adds = config.positions in ("learned", "sinusoidal")  # whether x_0 includes positions of mean square 1/2
        return 0.0, resolve(config).embed_std or math.sqrt(0.5 if adds else 1.0)
    if leaf in CONSTANTS:
        return CONSTANTS[leaf], 0.0
    if name == "unembed.weight" and config.unembed_std is not None:
        return 0.0, config.unembed_std
    init, L = resolve(config).init, config.n_layers
    if init in ("normal", "gpt2"):
        return 0.0, NORMAL_STD / (math.sqrt(2 * L) if init == "gpt2" and name.endswith(OUTPUT_PROJECTIONS) else 1.0)
    gains = {
        "xavier": 1.0, "deepnorm": (8 * L) ** -0.25, "sub": math.sqrt(math.log(2 * L)), "tfixup": 0.67 * L**-0.25,
    }  # fmt: skip
    return 0.0, math.sqrt(2 / (shape[0] + shape[1])) * (gains[init] if name.endswith(VALUE_PATH) else 1.0)


def read_by_norms(model: ModelConfig, seq_len: int) -> dict[str, float]:
    """Estimate the mean square of each norm's input in block 0 at initialization. In later blocks it is not smaller.

    The mean squares of independent terms add up, so the placement's function is called with mean squares instead of
    tensors. The estimate assumes that a smooth activation halves small numbers, and that a third of the values that
    attention averages are independent, because texts repeat symbols (measured: a half to a quarter). Returns {}
    if the norm is neither `layernorm` nor `rmsnorm`, or if the placement is the user's own.
    """
    found: dict[str, float] = {}
    r, D, row = resolve(model), model.d_model, row_of(model.placement)
    if r.norm not in ("layernorm", "rmsnorm") or sources.is_own(model.placement):
        return found

    def norm(name: str, x: float) -> float:
        found[name] = x
        return x / (x + model.norm_eps)

    def linear(x: float, name: str, n_in: int, n_out: int) -> float:
        return x * n_in * distribution(f"blocks.0.{name}.weight", (n_out, n_in), model)[1] ** 2

    norms: dict[str, Norm] = {name: partial(norm, name) for name in sources.NORMS}

    def attn(x: float, inner: Norm = float, qkv: tuple[Norm, Norm, Norm] = (float, float, float)) -> float:
        *_, v = (n(linear(x, f"attn.{m}", D, D)) for n, m in zip(qkv, "qkv", strict=True))
        # Averaging t / 3 independent values multiplies the mean square by 3 / t. `mean`: mean of min(1, 3 / t) over t.
        mean = 3 / seq_len * (1 + math.log(seq_len / 3)) if seq_len > 3 else 1.0
        return linear(inner(v * mean), "attn.out", D, D)

    def mlp(x: float, inner: Norm = float) -> float:
        gate = linear(x, "mlp.gate", D, r.d_ff) if model.activation in GATED else 1.0
        h = linear(x, "mlp.w1", D, r.d_ff) * gate * (0.5 if model.activation == "relu" else 0.25)
        return linear(inner(h), "mlp.w2", r.d_ff, D)

    x = distribution("embed", (1,), model)[1] ** 2 * (D if model.embed_init == "scaled" else 1)
    x += {"learned": distribution("pos", (1,), model)[1] ** 2, "sinusoidal": 0.5}.get(model.positions, 0.0)
    x = norm("embed_norm", x) if model.embed_norm else x
    L, squares = model.n_layers, {"omega1": 1.0, "omega2": 1.0, "scale": 0.0, "alpha": (2 * model.n_layers) ** 0.5}
    given = {"x": x, "r": x, "attn": attn, "mlp": mlp, "layer": 0, "n_layers": L, **norms, **squares}
    block = row.star_block if model.first_block == "star" and row.star_block else row.block
    block(**{name: given[name] for name in sources.parameters(block)})
    return found
