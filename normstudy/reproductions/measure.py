"""Measure models at initialization with torch: the first stage of a reproduction.

The training code provides the models, initial values, gradients and SGD. A measurement is a function that takes a batch
of models that differ only in the seed. Measurements compute in float32, as training does, and return float64 numbers.
Letters in shapes: B batch_size, T seq_len, D d_model, V vocab_size.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstudy.config import ModelConfig, OptimizerConfig, row_of
from normstudy.model.init import draw, init_params, set_omegas_
from normstudy.model.transformer import Transformer
from normstudy.reproductions.entry import Job, Reading, Sizes, Variant, model_config
from normstudy.training import optim, probes, step

NOISE = 0.01  # standard deviation of a matrix's noise, divided by the standard deviation of the matrix
NOISE_SEED = 2**30  # the noise's seed minus the model's seed: noise and weights must differ
RATE = 1e-2  # learning rate of the one SGD step
NORM_PARAMETERS = ("gamma", "beta")


class Models(NamedTuple):
    """Models of one shape at initialization. params: name -> tensor (runs, *shape). tokens: tensor (runs, B, T + 1)."""

    sizes: Sizes
    config: ModelConfig
    seeds: tuple[int, ...]
    model: Transformer
    params: dict[str, Tensor]
    tokens: Tensor


def measure(job: Job) -> list[Reading]:
    """Make one job's measurement and return its readings."""
    return MEASUREMENTS[job.kind](start(job.sizes, job.variant, job.depth, job.seeds))


def random_tokens(sizes: Sizes, seed: int) -> Tensor:
    """Draw uniform random tokens (B, T + 1). The target of a token is the next token."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    return torch.from_numpy(rng.integers(0, sizes.vocab_size, (sizes.batch_size, sizes.seq_len + 1)))


def start(sizes: Sizes, variant: Variant, depth: int, seeds: tuple[int, ...]) -> Models:
    """Initialize a model and draw a batch for each seed. With placement `admin`, set each omega from the batch."""
    config = model_config(variant, depth, sizes)
    with torch.device("meta"):
        model = Transformer(config, sizes.vocab_size, sizes.seq_len)
    params = init_params(model, [config] * len(seeds), list(seeds))
    tokens = torch.stack([random_tokens(sizes, seed) for seed in seeds])
    if variant.simplified:
        for name, p in params.items():
            if name.endswith(("attn.q.weight", "attn.k.weight")):
                p.zero_()
    if row_of(config.placement).profiled:
        set_omegas_(model, params, tokens[..., :-1])
    return Models(sizes, config, seeds, model, params, tokens)


def forward(models: Models, params: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Compute logits (runs, B, T, V) and the residual stream x_0 ... x_L, each (runs, B, T, D), without gradients."""
    of_run = functools.partial(torch.func.functional_call, models.model)
    with torch.no_grad():
        out: tuple[Tensor, list[Tensor]] = torch.func.vmap(of_run)(params, (models.tokens[..., :-1],))
    return out


def backward(models: Models) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the gradients of each model's loss, name -> (runs, *shape), and the residual stream of `forward`."""
    leaves = {name: p.detach().requires_grad_() for name, p in models.params.items()}
    losses, residual = torch.func.vmap(functools.partial(step.loss_of_run, models.model))(leaves, models.tokens)
    grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True)), [x.detach() for x in residual]


def _rows(models: Models, quantity: str, values: Tensor, layers: Sequence[int | None] = ()) -> list[Reading]:
    """Return a reading per layer and model. values: (layers, runs). layers: numbers of the layers, default 0, 1, ..."""
    by_layer = zip(layers or range(len(values)), values.double().tolist(), strict=True)
    return [(quantity, layer, seed, v) for layer, of in by_layer for seed, v in zip(models.seeds, of, strict=True)]


def _mean_squares(tensors: list[Tensor]) -> Tensor:
    """Return mean squares (tensors, runs): one for each tensor and run. tensors: (runs, ...), all of the same size."""
    return probes.rms_by_run(tensors).double().square()


def gradients(models: Models) -> list[Reading]:
    """Measure mlp_out_grad (the L2 gradient norm of each block's second MLP matrix), and mean_square as in `stream`."""
    grads, residual = backward(models)
    norms = probes.norms_by_run([grads[f"blocks.{layer}.mlp.w2.weight"] for layer in range(models.config.n_layers)])
    return _rows(models, "mean_square", _mean_squares(residual)) + _rows(models, "mlp_out_grad", norms)


def stream(models: Models) -> list[Reading]:
    """Measure mean_square: the mean of x_l^2 over tokens and dimensions, where x_l is the stream after block `l`."""
    return _rows(models, "mean_square", _mean_squares(forward(models, models.params)[1]))


def before_norm2(models: Models) -> list[Reading]:
    """Measure before_norm2, the mean square of norm2's input in each block. A post-norm block ends with norm2."""
    read: list[Tensor] = []

    def of_run(values: dict[str, Tensor], tokens: Tensor) -> list[Tensor]:
        read.clear()
        torch.func.functional_call(models.model, values, (tokens[:, :-1],))
        return list(read)

    with torch.no_grad(), contextlib.ExitStack() as stack:
        for block in models.model.blocks:
            norm2 = block.get_submodule("norm2")
            stack.enter_context(norm2.register_forward_hook(lambda _, args, out: read.append(args[0])))
        return _rows(models, "before_norm2", _mean_squares(torch.func.vmap(of_run)(models.params, models.tokens)))


def noise(models: Models) -> list[Reading]:
    """Measure output_change, the mean square change of the logits when noise is added to every block matrix."""
    before, _ = forward(models, models.params)
    noisy = dict(models.params)
    for name, p in models.params.items():
        if name.startswith("blocks.") and name.endswith(".weight"):
            drawn = [draw(name, p.shape[1:], models.config, seed + NOISE_SEED) for seed in models.seeds]
            noisy[name] = p + NOISE * torch.stack(drawn)
    after, _ = forward(models, noisy)
    return _rows(models, "output_change", _mean_squares([after - before]), [None])


def update(models: Models) -> list[Reading]:
    """Measure the root mean square change of a batch's logits after one SGD step of rate 0.01 on the same batch.

    update_trained: the step changes all parameters. update_frozen: the step does not change the norms' parameters.
    """
    grads, _ = backward(models)
    before, _ = forward(models, models.params)
    rows = []
    for quantity, frozen in (("update_frozen", NORM_PARAMETERS), ("update_trained", ())):
        names = [name for name in models.params if not name.endswith(frozen)]
        layout = probes.layout_of({name: models.params[name][0] for name in names})
        stepped = layout.flatten(models.params)
        configs = [OptimizerConfig(name="sgd")] * len(models.seeds)
        (rates,) = optim.coefficients("sgd", [0], [[RATE] * len(models.seeds)], configs, stepped)
        optim.update_("sgd", stepped, layout.flatten(grads), optim.new_state("sgd", stepped), rates)
        after, _ = forward(models, models.params | dict(zip(names, layout.tensors(stepped), strict=True)))
        rows += _rows(models, quantity, probes.rms_by_run([after - before]), [None])
    return rows


def constants(models: Models) -> list[Reading]:
    """Measure alpha and the initialization gains of models whose sublayers are norm(alpha x + f(x)).

    To measure alpha, the block is built without norms and with all parameters 0. Both sublayers then only multiply by
    alpha: for an input of 1, the block's output is alpha^2. gain_q ... gain_unembed: the L2 norm of a tensor's initial
    values, divided by the L2 norm of the values that init `xavier` draws with the same seed.
    """
    plain = replace(models.config, init="xavier", force_init=True)
    xavier = init_params(models.model, [plain] * len(models.seeds), list(models.seeds))
    rows = []
    for name, p in models.params.items():
        layer, _ = probes.module_of(name)
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if kind not in NORM_PARAMETERS:
            own, theirs = probes.norms_by_run([p.double(), xavier[name].double()])
            rows += _rows(models, f"gain_{kind}", (own / theirs)[None], [layer])

    one = torch.ones(1, 1, models.sizes.d_model)
    with torch.device("meta"):
        bare = Transformer(replace(models.config, norm="none"), models.sizes.vocab_size, models.sizes.seq_len)
    for layer, block in enumerate(bare.blocks):
        zeros = {name: torch.zeros(p.shape) for name, p in block.named_parameters()}
        made, _ = torch.func.functional_call(block, zeros, (one, one))
        rows += _rows(models, "alpha", made.mean().sqrt().expand(1, len(models.seeds)), [layer])
    return rows


MEASUREMENTS: dict[str, Callable[[Models], list[Reading]]] = {
    function.__name__: function for function in (gradients, stream, before_norm2, noise, update, constants)
}
