"""The first stage: what is measured of models at initialization, with torch.

Models, initialization and gradients are those that people train with: normstudy.model, init_params, Admin's profiling,
the loss of one run under vmap, ordinary autograd outside it, the package's own SGD. A measurement is a function of a
batch of runs that gives rows (quantity, layer or None, seed, value). Numbers are taken in float32, as in
training, and kept as float64.

B batch, T sequence, D d_model, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from normstudy.config import ModelConfig, OptimizerConfig, row_of
from normstudy.model.init import draw, init_params
from normstudy.model.transformer import Transformer
from normstudy.reproductions.entry import Job, Row, Setting, Variant, model_config
from normstudy.training import admin, optim, probes, step
from normstudy.training.layout import layout_of

NOISE = 0.01  # of a matrix's own standard deviation
NOISE_SEED = 2**30  # added to the seed: the noise is drawn as another initialization
RATE = 1e-2  # of the one SGD step
NORM_PARAMETERS = ("gamma", "beta")
MATRICES = {"attn.q": "q", "attn.k": "k", "attn.v": "v", "attn.out": "out", "mlp.w1": "w1", "mlp.w2": "w2"}


@dataclass(frozen=True)
class Runs:
    """Models of one shape at initialization. params: name -> (runs, *shape); tokens: (runs, B, T + 1)."""

    config: ModelConfig
    seeds: tuple[int, ...]
    model: Transformer
    params: dict[str, Tensor]
    tokens: Tensor


def measure(job: Job) -> list[Row]:
    """The rows of one job."""
    return MEASUREMENTS[job.kind](job.setting, job.variant, job.depth, job.seeds)


def random_tokens(setting: Setting, seed: int) -> Tensor:
    """Uniform random tokens (B, T + 1); the target of each place is the next token, which is random too."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    return torch.from_numpy(rng.integers(0, setting.vocab_size, (setting.batch_size, setting.seq_len + 1)))


def start(setting: Setting, variant: Variant, depth: int, seeds: tuple[int, ...]) -> Runs:
    """Runs at their initialization, Admin's omegas profiled on the batch that is measured."""
    config = model_config(variant, depth, setting)
    with torch.device("meta"):
        model = Transformer(config, setting.vocab_size, setting.seq_len)
    params = init_params(model, [config] * len(seeds), list(seeds))
    tokens = torch.stack([random_tokens(setting, seed) for seed in seeds])
    if variant.simplified:
        for name, p in params.items():
            if name.endswith(("attn.q.weight", "attn.k.weight")):
                p.zero_()
    if row_of(config.placement).profiled:
        admin.set_omegas_(model, params, tokens[..., :-1])
    return Runs(config, seeds, model, params, tokens)


def forward(runs: Runs, params: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits (runs, B, T, V) and the residual stream x_0 ... x_L, each (runs, B, T, D), without gradients."""

    def of_run(values: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        out: tuple[Tensor, list[Tensor]] = torch.func.functional_call(runs.model, values, (tokens[:, :-1],))
        return out

    with torch.no_grad():
        out: tuple[Tensor, list[Tensor]] = torch.func.vmap(of_run)(params, runs.tokens)
    return out


def backward(runs: Runs) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Each run's own gradients, name -> (runs, *shape), and its residual stream."""
    names = list(runs.params)

    def of_run(values: list[Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        return step.loss_of_run(runs.model, dict(zip(names, values, strict=True)), tokens)

    leaves = [p.detach().requires_grad_() for p in runs.params.values()]
    losses, residual = torch.func.vmap(of_run)(leaves, runs.tokens)
    grads = torch.autograd.grad(losses.sum(), leaves)
    return dict(zip(names, grads, strict=True)), [x.detach() for x in residual]


def _rows(quantity: str, layer: int | None, seeds: tuple[int, ...], values: Tensor) -> list[Row]:
    """One row a run, from values (runs,)."""
    return [(quantity, layer, seed, value) for seed, value in zip(seeds, values.double().tolist(), strict=True)]


def _mean_square(x: Tensor) -> Tensor:
    """(runs, ...) -> (runs,) float64."""
    return probes.rms_by_run(x).double().square()


# ---- measurements -----------------------------------------------------------------------------------------


def gradients(setting: Setting, variant: Variant, depth: int, seeds: tuple[int, ...]) -> list[Row]:
    """mlp_out_grad: L2 norm of the loss's gradient in each block's second MLP matrix; mean_square as in `stream`."""
    runs = start(setting, variant, depth, seeds)
    grads, residual = backward(runs)
    rows = [row for layer, x in enumerate(residual) for row in _rows("mean_square", layer, seeds, _mean_square(x))]
    for layer in range(depth):
        norms = optim.norm_by_run(grads[f"blocks.{layer}.mlp.w2.weight"])
        rows += _rows("mlp_out_grad", layer, seeds, norms)
    return rows


def stream(setting: Setting, variant: Variant, depth: int, seeds: tuple[int, ...]) -> list[Row]:
    """mean_square: mean of x_l^2 over tokens and dimensions, the paper's E|x_l|^2/d; layer l from 0 to depth."""
    runs = start(setting, variant, depth, seeds)
    _, residual = forward(runs, runs.params)
    return [row for layer, x in enumerate(residual) for row in _rows("mean_square", layer, seeds, _mean_square(x))]


def before_norm2(setting: Setting, variant: Variant, depth: int, seeds: tuple[int, ...]) -> list[Row]:
    """before_norm2: mean square of what the last norm of each block reads, for blocks that end with it."""
    runs = start(setting, variant, depth, seeds)
    read: list[Tensor] = []

    def of_run(values: dict[str, Tensor], tokens: Tensor) -> list[Tensor]:
        read.clear()
        torch.func.functional_call(runs.model, values, (tokens[:, :-1],))
        return list(read)

    handles = [
        block.get_submodule("norm2").register_forward_hook(lambda _, args, out: read.append(args[0]))
        for block in runs.model.blocks
    ]
    try:
        with torch.no_grad():
            streams = torch.func.vmap(of_run)(runs.params, runs.tokens)
    finally:
        for handle in handles:
            handle.remove()
    return [row for layer, x in enumerate(streams) for row in _rows("before_norm2", layer, seeds, _mean_square(x))]


def noise(setting: Setting, variant: Variant, depth: int, seeds: tuple[int, ...]) -> list[Row]:
    """output_change: mean square of the change of the logits when every matrix of the blocks gets 1 % of noise.

    The noise has 1 % of the standard deviation that the matrix was drawn with.
    """
    runs = start(setting, variant, depth, seeds)
    before, _ = forward(runs, runs.params)
    shapes = {name: p.shape for name, p in runs.model.named_parameters()}
    noisy = dict(runs.params)
    for name, p in runs.params.items():
        if name.startswith("blocks.") and name.endswith(".weight"):
            drawn = [draw(name, shapes[name], runs.config, seed + NOISE_SEED) for seed in seeds]
            noisy[name] = p + NOISE * torch.stack(drawn)
    after, _ = forward(runs, noisy)
    return _rows("output_change", None, seeds, _mean_square(after - before))


def update(setting: Setting, variant: Variant, depth: int, seeds: tuple[int, ...]) -> list[Row]:
    """Root mean square of the change of the logits after one SGD step of rate 0.01 on the batch measured.

    update_trained: of all parameters; update_frozen: of all but the norms'.
    """
    runs = start(setting, variant, depth, seeds)
    grads, _ = backward(runs)
    before, _ = forward(runs, runs.params)
    rows = []
    for quantity, frozen in (("update_frozen", NORM_PARAMETERS), ("update_trained", ())):
        names = [name for name in runs.params if not name.endswith(frozen)] if frozen else list(runs.params)
        layout = layout_of({name: runs.params[name][0] for name in names})
        stepped = layout.flatten(runs.params)
        configs = [OptimizerConfig(name="sgd")] * len(seeds)
        (rates,) = optim.coefficients("sgd", [0], [[RATE] * len(seeds)], configs, stepped)
        optim.update_("sgd", stepped, layout.flatten(grads), optim.new_state("sgd", stepped), rates)
        after, _ = forward(runs, runs.params | dict(zip(names, layout.tensors(stepped), strict=True)))
        rows += _rows(quantity, None, seeds, probes.rms_by_run(after - before))
    return rows


def constants(setting: Setting, variant: Variant, depth: int, seeds: tuple[int, ...]) -> list[Row]:
    """alpha and the init gains of a placement whose blocks are norm(alpha x + f(x)), read off the model itself.

    alpha: root of what a block without norm and with all parameters zero makes of 1. gain_q ... gain_w2, gain_embed,
    gain_pos, gain_unembed: norm of a tensor's draw over that of the same draw under xavier.
    """
    asked = start(setting, variant, depth, seeds)
    plain = replace(asked.config, init="xavier", force_init=True)
    xavier = init_params(asked.model, [plain] * len(seeds), list(seeds))
    rows = []
    for name, p in asked.params.items():
        layer, _ = probes.module_of(name)
        kind = name.removesuffix(".weight").removeprefix(f"blocks.{layer}.")
        if kind.endswith(NORM_PARAMETERS):
            continue
        gain = optim.norm_by_run(p.double()) / optim.norm_by_run(xavier[name].double())
        rows += _rows(f"gain_{MATRICES.get(kind, kind)}", layer, seeds, gain)

    one = torch.ones(1, 1, setting.d_model)
    with torch.device("meta"):
        bare = Transformer(replace(asked.config, norm="none"), setting.vocab_size, setting.seq_len)
    for layer, block in enumerate(bare.blocks):
        zeros = {name: torch.zeros(p.shape) for name, p in block.named_parameters()}
        made, _ = torch.func.functional_call(block, zeros, (one, one))
        rows += _rows("alpha", layer, seeds, made.mean().sqrt().expand(len(seeds)))
    return rows


Measurement = Callable[[Setting, Variant, int, tuple[int, ...]], list[Row]]
MEASUREMENTS: dict[str, Measurement] = {
    "gradients": gradients,
    "stream": stream,
    "before_norm2": before_norm2,
    "noise": noise,
    "update": update,
    "constants": constants,
}
