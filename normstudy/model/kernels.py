"""Compute the operations that take most of a step's time, for many runs at once.

These functions handle the run axis themselves. In the rest of the model, torch.func.vmap adds the run axis. A run's
bits must not depend on its batch. So each product multiplies one run's matrices, in a way that depends only on shapes.
The memory layout of the matrices determines the speed of a product (`normstudy bench --rows a` measures this speed).

On Intel CPUs, MKL computes the products of linear maps (processor.py). NumPy computes all other products on CPUs.
NumPy's OpenBLAS needs 1 us per call and can write into an existing array. torch.bmm calls MKL, which on AMD uses half
of AVX-512: per core 90 GFLOP/s instead of 180 for (256, 32) times (32, 128), and 105 instead of 210 for (512, 64)
times (64, 256).

Axes: R runs, N positions of all sequences of a run, B batch, T sequence, H heads, K d_head, I in, O out, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from normstudy.model import processor

# Elements per slice of runs. Consecutive operations process one slice at a time, so that the slice stays in the cache.
AT_ONCE = 2**19

Outputs = Sequence[Tensor]


def over_runs(function: Callable[..., Outputs], *inputs: Tensor | None) -> Outputs:
    """Call `function` once for all runs of a batch, from inside the vmapped forward pass of one run.

    `function` receives each input with the run axis, (R, ...). Without vmap, R is 1. A call costs 20 us, and would
    cost 110 us with the vmap rule of an autograd Function.
    """
    if _functorch.peek_interpreter_stack() is None:
        return [y[0] for y in function(*(None if x is None else x[None] for x in inputs))]
    vmap = retrieve_current_functorch_interpreter()
    if vmap.key() != _functorch.TransformType.Vmap or len(_functorch.get_interpreter_stack()) > 1:
        raise TypeError(
            "attn, mlp, layernorm and linear layers cannot be called inside torch.func's grad, jvp, jacobian or vmap: "
            "call them outside of these functions"
        )
    level, n_runs = vmap.level(), vmap.batch_size()  # type: ignore[attr-defined]
    stacked = [None if x is None else _functorch._remove_batch_dim(x, level, n_runs, 0) for x in inputs]
    with vmap.lower():
        outputs = function(*stacked)
    return [_functorch._add_batch_dim(y, 0, level) for y in outputs]


def _slices(like: Tensor) -> Iterator[slice]:
    """Yield slices of the first axis, runs. A slice has at most AT_ONCE numbers, but at least one run."""
    runs = max(1, AT_ONCE // max(1, like[0].numel()))
    return (slice(low, low + runs) for low in range(0, len(like), runs))


def _by_rows(x: Tensor) -> Tensor:
    """Return x (..., N, I), or a contiguous copy of x if x's rows overlap or have gaps. BLAS accepts no such rows."""
    return x if x.stride(-1) == 1 and x.stride(-2) >= x.shape[-1] else x.clone(memory_format=torch.contiguous_format)


def _multiply(a: Tensor, b: Tensor, out: Tensor, *, by_mkl: bool = False) -> None:
    """On a CPU, write the matrix products a @ b to `out`. by_mkl: use MKL. MKL needs 3 axes and contiguous rows."""
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"cannot multiply {a.dtype} by {b.dtype}: convert both to torch.float32")
    a, b = (x.detach() if x.requires_grad else x for x in (a, b))
    if by_mkl:
        torch.bmm(a, b, out=out)
        return
    with np.errstate(all="ignore"):  # overflow must not warn, because a diverged run is a valid result
        np.matmul(a.numpy(), b.numpy(), out=out.numpy())


def product(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Return x w + b for each run: (R, N, I), (R, I, O), (R, O) -> (R, N, O)."""
    if x.device.type != "cpu":
        return torch.bmm(x, w) if b is None else torch.baddbmm(b[:, None], x, w)
    y = x.new_empty(*x.shape[:2], w.shape[2])
    if b is None:
        _multiply(x, w, y, by_mkl=processor.by_mkl())
        return y
    for s in _slices(y):
        _multiply(x[s], w[s], y[s], by_mkl=processor.by_mkl())
        y[s].add_(b[s, None])
    return y


class _Linears(Function):
    """Apply linear maps to x (R, N, I) in one product. parameters: all weights (R, O, I), then any biases (R, O)."""

    @staticmethod
    def forward(ctx: FunctionCtx, n_maps: int, x: Tensor, *parameters: Tensor) -> Outputs:
        weights, biases = parameters[:n_maps], parameters[n_maps:]
        w = weights[0] if n_maps == 1 else torch.cat(weights, 1)
        ctx.save_for_backward(x, w)
        ctx.sizes, ctx.biased = [v.shape[1] for v in weights], bool(biases)  # type: ignore[attr-defined]
        y = product(x, w.mT, torch.cat(biases, 1) if biases else None)
        return (y,) if n_maps == 1 else torch.split(y, ctx.sizes, 2)  # type: ignore[attr-defined]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors  # type: ignore[attr-defined]
        sizes: list[int] = ctx.sizes  # type: ignore[attr-defined]
        # If `g` were not contiguous, the order of a sum over positions would depend on the number of runs.
        g = gradients[0].contiguous() if len(sizes) == 1 else torch.cat(gradients, 2)
        of_weights = torch.split(product(g.mT, x), sizes, 1)
        of_biases = torch.split(g.sum(1), sizes, 1) if ctx.biased else ()  # type: ignore[attr-defined]
        return None, product(g, w), *of_weights, *of_biases


def linears(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Return x W^T + b for one run's x (..., I) and each W (O, I) and b (O,). Either all maps have a bias or none."""

    def stacked(x: Tensor, *parameters: Tensor) -> Outputs:
        flat = _by_rows(x.reshape(len(x), -1, x.shape[-1]))
        outputs = _Linears.apply(len(weights), flat, *parameters)  # type: ignore[no-untyped-call]
        return [y.view(*x.shape[:-1], y.shape[-1]) for y in outputs]

    return list(over_runs(stacked, x, *weights, *(b for b in biases if b is not None)))


class _LayerNorm(Function):
    """Compute gamma * (x - mean) / sqrt(var + eps) + beta for x (R, N, I), gamma (R, I) and beta (R, I) on a CPU."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        norm, width = torch.native_layer_norm, x.shape[2:]  # for one run: it takes one gamma and one beta
        runs = [norm(x_r, width, gamma_r, beta_r, eps) for x_r, gamma_r, beta_r in zip(x, gamma, beta, strict=True)]
        y, mean, rstd = zip(*runs, strict=True)
        ctx.save_for_backward(x, gamma, *mean, *rstd)
        return torch.stack(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, *moments = ctx.saved_tensors  # type: ignore[attr-defined]
        g, back, width = gradients[0].contiguous(), torch.ops.aten.native_layer_norm_backward.default, x.shape[2:]
        mean, rstd = moments[: len(x)], moments[len(x) :]
        runs = [
            # The kernel needs a tensor in place of beta but does not read its values, so gamma is passed again.
            back(g_r, x_r, width, mean_r, rstd_r, gamma_r, gamma_r, [True, True, True])
            for g_r, x_r, mean_r, rstd_r, gamma_r in zip(g, x, mean, rstd, gamma, strict=True)
        ]
        return *map(torch.stack, zip(*runs, strict=True)), None


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Return gamma * (x - mean) / sqrt(var + eps) + beta for one run's x (..., I), with biased variance."""

    def stacked(x: Tensor, gamma: Tensor, beta: Tensor) -> Outputs:
        if x.device.type != "cpu":
            of_run = (len(x), *[1] * (x.dim() - 2), x.shape[-1])
            return [F.layer_norm(x, x.shape[-1:], None, None, eps) * gamma.view(of_run) + beta.view(of_run)]
        flat = x.reshape(len(x), -1, x.shape[-1])
        return [_LayerNorm.apply(flat, gamma, beta, eps).view(x.shape)]  # type: ignore[no-untyped-call]

    return over_runs(stacked, x, gamma, beta)[0]


class _CausalAttention(Function):
    """Compute softmax(q k^T / sqrt(K) + causal mask) v and its gradients for q, k, v (R, B, T, H, K) on a CPU.

    On sequences of 32 to 64 tokens this class is 1.5 to 1.8 times as fast as torch's fused attention. An inf or NaN
    spreads to earlier positions, since 0 times inf is NaN. The spread is harmless: such a run has diverged anyway.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        R, B, T, H, K = q.shape
        masked = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
        weights, mixed = q.new_empty(R, B, H, T, T), q.new_empty(R, B, T, H, K)
        q, k, v = (_by_rows(x.transpose(2, 3)) for x in (q, k, v))
        into = mixed.transpose(2, 3)
        for s in _slices(weights):
            scores = torch.empty_like(weights[s])
            _multiply(q[s], k[s].mT, scores)
            torch.add(masked, scores, alpha=K**-0.5, out=scores)
            torch.softmax(scores, -1, out=weights[s])
            _multiply(weights[s], v[s], into[s])
        ctx.save_for_backward(q, k, v, weights)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Outputs:
        q, k, v, weights = ctx.saved_tensors  # type: ignore[attr-defined]
        g, scale = _by_rows(gradients[0].transpose(2, 3)), q.shape[-1] ** -0.5
        of_qkv = [q.new_empty(gradients[0].shape) for _ in "qkv"]
        of_q, of_k, of_v = (x.transpose(2, 3) for x in of_qkv)
        for s in _slices(weights):
            of_weights, of_scores = torch.empty_like(weights[s]), torch.empty_like(weights[s])
            _multiply(weights[s].mT, g[s], of_v[s])
            _multiply(g[s], v[s].mT, of_weights)
            torch.ops.aten._softmax_backward_data(of_weights, weights[s], -1, q.dtype, grad_input=of_scores)
            _multiply(of_scores, k[s], of_q[s])
            _multiply(of_scores.mT, q[s], of_k[s])
        of_q.mul_(scale)
        of_k.mul_(scale)
        return tuple(of_qkv)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(K) + causal mask) v for each head of a run. q, k, v and result: (B, T, H, K)."""

    def stacked(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        if q.device.type == "cpu":
            return [_CausalAttention.apply(q, k, v)]  # type: ignore[no-untyped-call]
        # torch's fused attention has no run axis, so the sequences of all runs form one batch.
        R, B = q.shape[:2]
        q, k, v = (y.reshape(R * B, *y.shape[2:]).transpose(1, 2) for y in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return [mixed.reshape(R, B, *mixed.shape[1:])]

    return over_runs(stacked, q, k, v)[0]


class _CrossEntropy(Function):
    """Compute the mean cross-entropy (R,) of logits (R, N, V) and targets (R, N) on a CPU, with the same bits as torch.

    torch's backward pass allocates a tensor of zeros as large as the logits, and a copy of this tensor. This class
    allocates the zeros for one slice of runs and reuses them for the other slices, so they stay in the cache.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, targets: Tensor) -> Tensor:
        log_p, index = torch.empty_like(logits), targets[..., None]
        of_targets = logits.new_empty(index.shape)
        for s in _slices(logits):
            torch.log_softmax(logits[s], 2, out=log_p[s])
            torch.gather(log_p[s], 2, index[s], out=of_targets[s])
        ctx.save_for_backward(log_p, index)
        return of_targets.sum((1, 2)).div_(-targets.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        log_p, index = ctx.saved_tensors  # type: ignore[attr-defined]
        of_targets = (gradients[0] / -index.shape[1])[:, None, None].expand(index.shape)
        of_logits, zeros = torch.empty_like(log_p), None
        for s in _slices(log_p):
            zeros = torch.zeros_like(log_p[s]) if zeros is None else zeros[: len(log_p[s])]
            torch.ops.aten._log_softmax_backward_data(
                zeros.scatter_(2, index[s], of_targets[s]), log_p[s], 2, log_p.dtype, out=of_logits[s]
            )
            zeros.scatter_(2, index[s], 0.0)
        return of_logits, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of one run's logits (..., V) and targets (...), in nats per token."""

    def stacked(logits: Tensor, targets: Tensor) -> Outputs:
        flat = logits.reshape(len(logits), -1, logits.shape[-1]).contiguous()
        return [_CrossEntropy.apply(flat, targets.reshape(len(targets), -1))]  # type: ignore[no-untyped-call]

    if logits.device.type != "cpu":
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
    return over_runs(stacked, logits, targets)[0]
