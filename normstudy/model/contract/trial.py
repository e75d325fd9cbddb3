"""Call a user's block or norm several times, as in training, and compare the results."""

import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normstudy.config import ModelConfig, resolve, sources
from normstudy.errors import ConfigError
from normstudy.model.contract import rules
from normstudy.model.norms import FunctionNorm
from normstudy.model.own import made_by
from normstudy.model.transformer import Block, Transformer, norm_width

# Differences up to this, relative to the largest value, count as rounding. Rounding in batches of different sizes
# differs by about 1e-7. A broken rule causes larger differences: one token changes a mean over 4096 tokens by 1e-4.
TOLERANCE = 1e-5


class _Method(nn.Module):
    """A module whose `forward` calls another module's method, since torch.func.functional_call calls only `forward`."""

    def __init__(self, of: nn.Module, method: str) -> None:
        super().__init__()
        self.of, self.forward = of, getattr(of, method)


def _call(module: nn.Module, method: str, params: dict[str, Tensor], inputs: list[Tensor]) -> object:
    """Call a method of a module with `params`, name -> tensor, instead of the module's own parameters."""
    named = {f"of.{name}": p for name, p in params.items()}
    return torch.func.functional_call(_Method(module, method), named, tuple(inputs))


class Subject(NamedTuple):
    """What is tested: the block of one layer, or a norm of one width, with the parameters of two runs.

    who: the name of the block or norm in error messages. specs: the user's own blocks and norms that a call executes.
    params: parameter's name -> values, (runs, *shape). streams: number of tensors that a call returns. parts: the
    arguments that must affect the result. widths: last axes of an input (runs, sequences, tokens, *widths).
    """

    who: str
    specs: list[str]
    module: nn.Module
    method: str
    params: dict[str, Tensor]
    streams: int
    parts: tuple[str, ...]
    widths: tuple[int, ...]

    def broken(self, rule: str, what: str, do: str) -> ConfigError:
        return rules.broken(self.who, rule, what, do)

    def call(self, params: dict[str, Tensor], inputs: list[Tensor], how: str = "") -> list[Tensor]:
        """Return the streams (runs, B, T, ...) of one call for all runs. how: a note for errors in the user's code."""

        def of_one_run(params: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
            return self._streams(_call(self.module, self.method, params, inputs), inputs[0])

        try:
            return list(torch.func.vmap(of_one_run)(params, inputs))
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            # Call the user's code for one run alone, since its errors are clearer without the run axis.
            with rules.blaming(self.who, self.specs, how):
                of_one_run({name: p[0] for name, p in params.items()}, [t[0] for t in inputs])
            raise rules.torch_says(self.who, self.specs, error) from error

    def _streams(self, out: object, x: Tensor) -> tuple[Tensor, ...]:
        streams = out if isinstance(out, tuple) and self.streams == 2 else (out,)
        if len(streams) != self.streams or not all(isinstance(s, Tensor) for s in streams):
            what = f"a {type(out).__name__}" + (f" of {len(out)}" if isinstance(out, tuple) else "")
            what = f"the result is {'None' if out is None else what}"
            if self.streams == 1:
                raise self.broken(rules.RETURN, f"{what}, but it must be one tensor", "return x")
            what = f"{what}, but a block with the argument r must return two tensors, x and r"
            raise self.broken(rules.RETURN, what, "return x, r")
        for s in streams:
            if s.shape != x.shape:
                what = f"the result has shape {tuple(s.shape)}, but x has {tuple(x.shape)} (sequences, tokens, width)"
                raise self.broken(rules.SHAPE, what, "return a tensor of the shape of x")
            if s.dtype != x.dtype:
                what = f"the result is {s.dtype}, but x is {x.dtype}"
                raise self.broken(rules.DTYPE, what, "use x's dtype for constants")
        return streams


def block(of: Block, layer: int, stacked: dict[str, Tensor], model: ModelConfig) -> Subject:
    return Subject(
        who=f"{model.placement}, layer {layer}", module=of, method="call",
        specs=[spec for spec in (model.placement, resolve(model).norm) if sources.is_own(spec)],
        params=_below(stacked, f"blocks.{layer}."), streams=2 if "r" in of.wanted else 1,
        parts=tuple(name for name in of.wanted if name not in sources.NUMBERS), widths=(model.d_model,),
    )  # fmt: skip


def norms(transformer: Transformer, stacked: dict[str, Tensor], model: ModelConfig) -> list[Subject]:
    """Return one Subject of the user's own norm for each input shape that occurs in the model."""
    spec, found = resolve(model).norm, {}
    for path, module in transformer.named_modules():
        name = path.rpartition(".")[2]
        if name == "own" or not (type(module) is FunctionNorm or made_by(module)):
            continue
        full = ".attn." in path and resolve(model).qk_norm == "full"
        width = model.d_model if full else norm_width(model, name)
        per_head = name in ("q_norm", "k_norm", "v_norm") and not full
        widths = (model.n_heads, width) if per_head else (width,)
        found[widths] = Subject(
            who=f"{spec}, width {width}", specs=[spec], module=module, method="forward",
            params=_below(stacked, f"{path}."), streams=1, parts=("x",), widths=widths,
        )  # fmt: skip
    return list(found.values())


def _below(stacked: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): p for name, p in stacked.items() if name.startswith(prefix)}


def embedded(transformer: Transformer, stacked: dict[str, Tensor], vocab_size: int, seq_len: int) -> list[Tensor]:
    """Return x_0 for random tokens, and a copy of x_0 as the second stream r: each (runs, sequences, tokens, width)."""
    rng = np.random.Generator(np.random.Philox(key=0))
    tokens = torch.from_numpy(rng.integers(0, vocab_size, (2, 2, seq_len))).to(next(iter(stacked.values())).device)
    x = torch.func.vmap(lambda params, tokens: _call(transformer, "embedding", params, [tokens]))(stacked, tokens)
    assert isinstance(x, Tensor)
    return [x, x.clone()]


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw standard normal numbers in float32."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape, np.float32))


def generators() -> tuple[object, ...]:
    """Return the states of the global random generators of torch, numpy and Python."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  # a user's code may draw from it
    return torch.get_rng_state().numpy().tobytes(), str(numpy), random.getstate()


def check_calls(subject: Subject, inputs: list[Tensor]) -> list[Tensor]:
    """Raise a ConfigError if calls on inputs (runs, sequences, tokens, ...) break a rule. Return the new streams."""
    with torch.no_grad():
        out, called = _check_once(subject, inputs)
        _check_repeats(subject, inputs, out)
    _check_backward(subject, inputs, called)
    return [*out, *inputs[len(out) :]]


def _check_once(subject: Subject, inputs: list[Tensor]) -> tuple[list[Tensor], set[str]]:
    """Call the block or norm once and check the result. Return the streams, and the names of the submodules called."""
    watched = {
        "x": inputs[:1], "r": inputs[1:], "a parameter": list(subject.params.values()),
        "a buffer": list(subject.module.buffers()),
    }  # fmt: skip
    before = {what: [t.clone() for t in tensors] for what, tensors in watched.items()}
    states = generators()
    called: set[str] = set()
    children = subject.module.named_children()
    hooks = [child.register_forward_hook(lambda *_, name=name: called.add(name)) for name, child in children]
    try:
        out = subject.call(subject.params, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    after = {**watched, "a buffer": list(subject.module.buffers())}
    for what, tensors in after.items():
        if not all(torch.equal(a, b) for a, b in zip(tensors, before[what], strict=True)):
            raise subject.broken(rules.IN_PLACE, f"the code changes {what}", "compute a new tensor, as in x = x + y")
    if generators() != states:
        what = "the code draws random numbers with numpy or Python"
        raise subject.broken(rules.RANDOM, what, "leave out random numbers")
    if not all(torch.isfinite(o).all() for o in out):
        do = "guard logarithms, roots and divisions against 0"
        raise subject.broken(rules.FINITE, "the result contains inf or NaN", do)
    return out, called


def _check_repeats(subject: Subject, inputs: list[Tensor], out: list[Tensor]) -> None:
    p = subject.params

    def same(now: list[Tensor], before: list[Tensor], rule: str, what: str, do: str) -> None:
        if (by := _difference(now, before)) is not None:
            raise subject.broken(rule, f"{what} ({by})", do)

    same(
        subject.call(p, inputs), out, rules.STATE, "a second call with the same inputs returns other values",
        "leave out counters, clocks, random numbers and anything else that changes between calls",
    )  # fmt: skip
    others = [_replaced(t, (slice(None), 1), seed) for seed, t in enumerate(inputs, start=1)]
    same(
        [o[:, :1] for o in subject.call(p, others)], [o[:, :1] for o in out], rules.SEQUENCES,
        "changing the second sequence changes the result of the first", "compute over the last axis",
    )  # fmt: skip
    same(
        subject.call(p, [t[:, 1:] for t in inputs], "in a call with a single sequence"),
        [o[:, 1:] for o in out], rules.SEQUENCES, "removing the first sequence changes the result of the second",
        "compute each sequence separately",
    )  # fmt: skip
    last = inputs[0].shape[2] - 1
    for cut in (last, (last + 1) // 2, 1):
        what = "changing the last token" if cut == last else "changing later tokens"
        others = [_replaced(t, (slice(None), slice(None), slice(cut, None)), seed) for seed, t in enumerate(inputs, 3)]
        same(
            [o[:, :, :cut] for o in subject.call(p, others)], [o[:, :, :cut] for o in out], rules.LATER,
            f"{what} changes the results at earlier positions", "use only the same and earlier positions",
        )  # fmt: skip
    one = subject.call({n: t[:1] for n, t in p.items()}, [t[:1] for t in inputs], "in a call with a single run")
    same(
        one, [o[:1] for o in out], rules.RUNS, "removing the second run changes the result of the first",
        "store no tensors between calls",
    )  # fmt: skip


def _replaced(t: Tensor, where: tuple[slice | int, ...], seed: int) -> Tensor:
    """Return a copy of t whose values at `where` are normal, with mean RMS(t) and standard deviation 3 RMS(t)."""
    out = t.clone()
    out[where] = t.square().mean().sqrt() * (1 + 3 * normal(tuple(out[where].shape), seed).to(t.device))
    return out


def _difference(some: list[Tensor], others: list[Tensor]) -> str | None:
    """Describe how two results differ. Return None if the results differ only by rounding."""
    for a, b in zip(some, others, strict=True):
        if a.numel() and (largest := float((a - b).abs().max())) > TOLERANCE * float(b.abs().max()):
            return f"the results differ by up to {largest:.2g} and contain values up to {float(b.abs().max()):.2g}"
        if a.numel() and not torch.isfinite(a).all():
            return "inf or NaN"
    return None


def _check_backward(subject: Subject, inputs: list[Tensor], called: set[str]) -> None:
    leaves = {name: p.detach().clone().requires_grad_() for name, p in subject.params.items()}
    streams = [t.detach().clone().requires_grad_() for t in inputs]
    out = subject.call(leaves, streams, "in a call with gradients")
    if not all(o.requires_grad for o in out):
        raise subject.broken(rules.USED, "the result has no gradient", "leave out detach() and no_grad()")
    loss = torch.stack([(o * normal(tuple(o.shape), seed).to(o.device)).sum() for seed, o in enumerate(out)]).sum()
    known = {id(t) for t in (*leaves.values(), *streams)}
    if strangers := [t for t in _leaves_of(loss) if id(t) not in known]:
        what = f"the code uses a parameter of shape {tuple(strangers[0].shape)} that no run trains"
        raise subject.broken(rules.OUTSIDE, what, "write an nn.Module class that contains this parameter")
    try:
        grads = torch.autograd.grad(loss, [*streams, *leaves.values()], allow_unused=True)
    except RuntimeError as error:
        raise rules.torch_says(subject.who, subject.specs, error) from error
    by_name = dict(zip([*sources.STREAMS[: len(streams)], *leaves], grads, strict=True))
    for part in (*subject.parts, *subject.params):
        theirs = [g for name, g in by_name.items() if name == part or name.startswith(f"{part}.")]
        if any(g is None for g in theirs) or (part in sources.NORMS + sources.SUBLAYERS and part not in called):
            do = f"use {part}" if part in (*sources.SUBLAYERS, "x") else f"use {part}, or leave it out"
            raise subject.broken(rules.USED, f"{part} does not affect the result", do)
    if not all(torch.isfinite(g).all() for g in grads if g is not None):
        do = "guard roots, norms and divisions against 0"
        raise subject.broken(rules.FINITE, "the gradient contains inf or NaN", do)


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """Return the tensors for which a backward pass from `loss` would compute gradients (the leaves of its graph)."""
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [after for after, _ in node.next_functions]
    return found
