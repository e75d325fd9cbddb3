"""What most of a step's time goes into, for many runs at once: linear maps and causal attention.

The model is written for one run and vmapped. Here the run axis comes back into sight, because how the runs' products
are laid out decides the speed (`normstudy bench --rows a` measures it), and because a run's bits must not depend on
what it is batched with: each product is of one run's matrices, by a rule that looks at one run's shape only.

R runs, N positions of all of a run's sequences, B batch, T sequence, H heads, K d_head; I in, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

# Multiplications in one run's product from which one call of oneDNN a run beats a batched product of MKL: the call
# costs 10 us more, and on a CPU that is not Intel's MKL computes at half of its width where oneDNN uses all of it.
ONEDNN_FROM = 2**21

Outputs = Sequence[Tensor]


def over_runs(function: Callable[..., Outputs], *inputs: Tensor | None) -> Outputs:
    """`function` of inputs stacked over runs, (R, ...), called from the forward of one run, vmapped or not.

    It does what an autograd Function with a vmap rule does, which costs 110 us a call, a twentieth of a small
    model's step, where this costs 20.
    """
    if _functorch.peek_interpreter_stack() is None:
        return [y[0] for y in function(*(None if x is None else x[None] for x in inputs))]
    vmap = retrieve_current_functorch_interpreter()
    if vmap.key() != _functorch.TransformType.Vmap:
        raise TypeError("attn, mlp and linear layers cannot be called inside torch.func's grad, jvp or jacobian")
    level, n_runs = vmap.level(), vmap.batch_size()  # type: ignore[attr-defined]
    stacked = [None if x is None else _functorch._remove_batch_dim(x, level, n_runs, 0) for x in inputs]
    with vmap.lower():
        outputs = function(*stacked)
    return [_functorch._add_batch_dim(y, 0, level) for y in outputs]


# ---- linear maps --------------------------------------------------------------------------------------


def _by_onednn(n: int, w: Tensor) -> bool:
    """Whether products of n rows with matrices as w, (R, O, I), are oneDNN's."""
    return (
        n * w[0].numel() >= ONEDNN_FROM
        and w.device.type == "cpu"
        and w.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _onednn(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x w^T + b of one run: (N, I), (O, I), (O,) -> (N, O)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    return y


def product(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x w^T + b, run by run: (R, N, I), (R, O, I), (R, O) -> (R, N, O)."""
    if not _by_onednn(x.shape[1], w):
        return torch.bmm(x, w.mT) if b is None else torch.baddbmm(b[:, None], x, w.mT)
    y = x.new_empty(*x.shape[:2], w.shape[1])
    for y_r, x_r, w_r, b_r in zip(y, x, w, [None] * len(x) if b is None else b, strict=True):
        y_r.copy_(_onednn(x_r, w_r, b_r))
    return y


def weight_gradient(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """g^T x, run by run: the gradient of w (R, O, I), where g (R, N, O) is that of x w^T and x (R, N, I)."""
    if not _by_onednn(x.shape[1], w):
        return torch.bmm(g.mT, x)
    gradient = torch.empty_like(w, memory_format=torch.contiguous_format)
    for gradient_r, g_r, x_r in zip(gradient, g, x, strict=True):
        if w.shape[1] < w.shape[2]:
            gradient_r.copy_(_onednn(g_r.mT, x_r.mT))
        else:  # oneDNN is quicker with fewer rows than columns
            gradient_r.mT.copy_(_onednn(x_r.mT, g_r.mT))
    return gradient


class _Linears(Function):
    """Linear maps of one input as one: q, k and v of attention, or a gate beside what it gates.

    Inputs: x (R, N, I), then all weights (R, O, I), then all biases (R, O), if there are any.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, n_maps: int, x: Tensor, *parameters: Tensor) -> Outputs:
        weights, biases = parameters[:n_maps], parameters[n_maps:]
        w = weights[0] if n_maps == 1 else torch.cat(weights, 1)
        ctx.save_for_backward(x, w)
        ctx.sizes, ctx.biased = [v.shape[1] for v in weights], bool(biases)  # type: ignore[attr-defined]
        y = product(x, w, torch.cat(biases, 1) if biases else None)
        return (y,) if n_maps == 1 else torch.split(y, ctx.sizes, 2)  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors  # type: ignore[attr-defined]
        sizes: list[int] = ctx.sizes  # type: ignore[attr-defined]
        g = gradients[0] if len(sizes) == 1 else torch.cat(gradients, 2)
        of_weights = torch.split(weight_gradient(g, x, w), sizes, 1)
        of_biases = torch.split(g.sum(1), sizes, 1) if ctx.biased else ()  # type: ignore[attr-defined]
        return None, product(g, w.mT), *of_weights, *of_biases


def linears(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """x W^T + b for each of several W (O, I) and b (O,) of one run's x (..., I); all biases are there or none is."""

    def stacked(x: Tensor, *parameters: Tensor) -> Outputs:
        flat = x.reshape(len(x), -1, x.shape[-1])
        outputs: Outputs = _Linears.apply(len(weights), flat, *parameters)  # type: ignore[no-untyped-call]
        return [y.view(*x.shape[:-1], y.shape[-1]) for y in outputs]

    return list(over_runs(stacked, x, *weights, *(b for b in biases if b is not None)))


# ---- attention ----------------------------------------------------------------------------------------


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K) + causal mask) v, head by head: (B, T, H, K) each -> (B, T, H, K).

    torch's fused attention has no rule for a run axis: to it, runs are more sequences.
    """

    def stacked(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        R, B = q.shape[:2]
        q, k, v = (y.reshape(R * B, *y.shape[2:]).transpose(1, 2) for y in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return [mixed.reshape(R, B, *mixed.shape[1:])]

    return over_runs(stacked, q, k, v)[0]
