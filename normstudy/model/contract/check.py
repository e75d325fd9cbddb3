"""The contract of a user's own block or norm, tried out before anything trains.

torch names about half of what would spoil a batch of runs, at the moment it batches over them; about the rest it is
silent. So each block, and each norm at each width, is called as training calls it: batched over two runs, with two
sequences of the run's length and width, at initialization. What it returns is compared.

    call                                    shows
    once                                    what it returns, changes in place, numbers that are not finite
    again                                   random numbers, a state between calls
    another second sequence; it alone       a statistic over sequences
    other last, later tokens                a look at later tokens
    one run alone                           runs that reach one another
    backward                                what is unused or detached, parameters of nobody

A module's constructor is called twice with one seed and once with another. The first rule found broken is named in one
line; those about what is returned come first, since everything else follows from them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import random
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from normstudy.config import ConfigError, ModelConfig, RunConfig, resolve, sources
from normstudy.errors import nearest
from normstudy.model.init import init_params
from normstudy.model.norms import FunctionNorm
from normstudy.model.own import asked_of, construct, load, made_by, move
from normstudy.model.transformer import Block, Transformer, build, norm_width

RETURN = "return the new stream"
SHAPE = "keep the shape"
DTYPE = "keep the dtype"
IN_PLACE = "change nothing in place"
FINITE = "be finite at initialization"
RANDOM = "no random numbers"
STATE = "the same again"
SEQUENCES = "no statistic over sequences"
LATER = "no look at later tokens"
RUNS = "no look at other runs"
CONTROL = "no control flow by data"
USED = "use all that is asked for"
OUTSIDE = "no parameters outside"
RULES = (
    RETURN, SHAPE, DTYPE, IN_PLACE, FINITE, RANDOM, STATE, SEQUENCES, LATER, RUNS, CONTROL, USED, OUTSIDE,
)  # fmt: skip

# Two calls on the same numbers in batches of other sizes differ by float32 rounding, some 1e-7 of the largest value,
# and a legitimate detour (a causal convolution by FFT) by little more. A mean over a block of 4096 tokens, whose last
# one is changed by three standard deviations, moves by 1e-4 of it.
TOLERANCE = 1e-5

# What torch says, or part of it -> the rule, what is wrong, what to do.
TORCH_SAYS = (
    ("called random operation", RANDOM, "it draws random numbers (dropout does)", "leave them out"),
    (
        "data-dependent control flow|torch.allclose|aten::equal", CONTROL, "a tensor decides (if, while, assert, max)",
        "compute both ways and choose by torch.where",
    ),
    ("calling .item", CONTROL, ".item(), float() or int() takes a number out of a tensor", "keep it a tensor"),
    ("doesn't have storage", CONTROL, "numpy, .tolist() or the like takes numbers out of a tensor", "keep it a tensor"),
    (
        "dynamic shape|masked_select", CONTROL, "values decide the shape of a result (x[x > 0], nonzero)",
        "use torch.where, or multiply by a mask",
    ),
    ("Batch norm got a batched", SEQUENCES, "batch norm keeps running statistics", "use a norm over the last axis"),
    ("modified by an inplace", IN_PLACE, "backward needs a tensor that was changed in place", "compute a new tensor"),
    (
        "accessing `data`|leaf Variable", IN_PLACE, "it changes a tensor behind autograd's back",
        "compute a new tensor",
    ),
    (
        "not being vmapped over|match the broadcast shape", IN_PLACE,
        "it writes into a tensor that all runs share (a buffer, torch.zeros)",
        "compute a new tensor, or begin with torch.zeros_like(x)",
    ),
)  # fmt: skip


def check(config: RunConfig, vocab_size: int, device: str = "cpu") -> None:
    """Raise a ConfigError that names the rule which the own placement or norm of a run breaks.

    What the user's code prints, or warns of, meanwhile is not shown: the line would be lost in it.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        _check(config, vocab_size, device)


def _check(config: RunConfig, vocab_size: int, device: str) -> None:
    model = config.model
    names = [name for name in (resolve(model).norm, model.placement) if sources.is_own(name)]
    generators, dtype = _generators(), torch.get_default_dtype()
    found = {name: load(name) for name in names}
    drawn = _generators() != generators
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
        raise _broken(" and ".join(names), DTYPE, "importing it changes torch's default dtype", f"leave it {dtype}")
    for name in names:
        arguments = _check_block_arguments if name == model.placement else _check_norm_arguments
        make = arguments(name, found[name], model)
        if make is not None:
            _check_constructor(name, make)
    with _blaming(" and ".join(names), names):
        transformer = build(config, vocab_size)
        stacked = init_params(transformer, [model, model], [config.seed, config.seed + 1])
    move(transformer, device)
    stacked = {name: p.to(device) for name, p in stacked.items()}
    if sources.is_own(resolve(model).norm):
        for subject in _norms(transformer, stacked, model):
            shape = (2, 2, config.data.seq_len, *subject.widths)
            _check_calls(subject, [_normal(shape, seed=0).to(device)])
    if sources.is_own(model.placement):
        streams = _embedded(transformer, stacked, vocab_size, config.data.seq_len)
        for layer, block in enumerate(transformer.blocks):
            assert isinstance(block, Block)
            streams = _check_calls(_block(block, layer, stacked, model), streams)
    if drawn:
        raise _broken(
            " and ".join(names), RANDOM, "importing it draws random numbers, others in each process",
            "draw from a generator of its own, such as torch.Generator().manual_seed(0)",
        )  # fmt: skip


def _broken(who: str, rule: str, what: str, do: str) -> ConfigError:
    return ConfigError(f'{who} breaks the rule "{rule}": {what}: {do}')


Maker = Callable[[], nn.Module]


# ---- before it is called --------------------------------------------------------------------------------


def _generators() -> tuple[object, ...]:
    """The states of the global random generators of torch, numpy and Python."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  # what a user's code may draw from
    return torch.get_rng_state().numpy().tobytes(), str(numpy), random.getstate()


def _check_names(spec: str, found: Callable[..., object], allowed: tuple[str, ...]) -> list[str]:
    try:
        parameters = sources.parameters(found)
    except (TypeError, ValueError):  # of what is not written in Python
        raise ConfigError(f"{spec}: the names of its arguments cannot be read: wrap it in a def") from None
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{spec}: its argument {parameter} has no fixed name: name what it gets, as in x, attn")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"{spec}: its argument {name} cannot be given by name: leave out the slash")
        if name not in allowed:
            raise ConfigError(
                f"{spec}: its argument {name} is none that it can be given: {', '.join(allowed)}."
                f"{nearest(name, allowed)}"
            )
    if "x" not in parameters:
        raise ConfigError(f"{spec}: it has no argument x, the residual stream")
    return list(parameters)


def _check_class(spec: str, found: object) -> type[nn.Module] | None:
    """The class, where it is one of nn.Module; None for a function; a ConfigError for anything else."""
    if isinstance(found, nn.Module):
        raise _broken(
            spec, OUTSIDE, f"it is a {type(found).__name__} that was made already, with parameters of its own",
            "give its class, of which each run gets a module",
        )  # fmt: skip
    if not isinstance(found, type):
        return None
    if not issubclass(found, nn.Module):
        raise ConfigError(f"{spec}: it is a class, but not of nn.Module: give a function or such a class")
    if found.forward is nn.Module.forward:
        raise ConfigError(f"{spec}: it has no forward: write one that takes x and returns the new x")
    return found


def _check_block_arguments(spec: str, found: Callable[..., object], model: ModelConfig) -> Maker | None:
    """What makes the module of layer 0; None for a function."""
    cls = _check_class(spec, found)
    names = _check_names(spec, found, sources.BLOCK_ARGUMENTS)
    for sublayer in sources.SUBLAYERS:
        if sublayer not in names:
            raise _broken(
                spec, USED, f"it has no argument {sublayer}, and every block has both sublayers",
                f"take {sublayer} and use it",
            )  # fmt: skip
    return None if cls is None else functools.partial(cls, **asked_of(cls, 0, model))


def _check_norm_arguments(spec: str, found: Callable[..., object], model: ModelConfig) -> Maker | None:
    """What makes the module of width d_model; None for a function."""
    cls = _check_class(spec, found)
    if cls is None:
        _check_names(spec, found, sources.NORM_ARGUMENTS)
        return None
    for what, called, given in (
        ("constructor is called with the width", cls, ["width"]),
        ("forward is called with x", cls.forward, ["self", "x"]),
    ):
        try:
            inspect.signature(called).bind(*given)
        except TypeError as error:
            raise ConfigError(f"{spec}: its {what} alone: {error}") from None
    return functools.partial(cls, model.d_model)


def _check_constructor(spec: str, make: Maker) -> None:
    with _blaming(spec, [spec]), _uninitialized_is_nan():
        first, again, other = (construct(make, seed) for seed in (0, 0, 1))
    for module in first.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise _broken(
                spec, SEQUENCES, f"it has a batch norm ({type(module).__name__})", "use a norm over the last axis"
            )
    for name, p in first.named_parameters():
        if nn.parameter.is_lazy(p):
            raise ConfigError(f"{spec}: its parameter {name} has no shape yet: give its width to the constructor")
        if not p.requires_grad:
            raise ConfigError(f"{spec}: its parameter {name} has requires_grad=False: make it a buffer, which is fixed")
        if not torch.isfinite(p).all():
            raise _broken(spec, FINITE, f"its parameter {name} is inf, NaN or never set (torch.empty)", "set it")
        if not torch.equal(p, again.get_parameter(name)):
            raise _broken(
                spec, RANDOM, f"its parameter {name} does not follow torch's seed (numpy, Python's random)",
                "draw it by torch",
            )  # fmt: skip
    for name, buffer in first.named_buffers():
        if not torch.equal(buffer, other.get_buffer(name)):
            raise _broken(
                spec, RANDOM, f"its buffer {name} is drawn, and all runs of a batch share it",
                "make it a parameter, or draw it from a generator of its own",
            )  # fmt: skip


@contextlib.contextmanager
def _uninitialized_is_nan() -> Iterator[None]:
    """What torch.empty gives is NaN, where it would be whatever lay in memory."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


# ---- what is called -------------------------------------------------------------------------------------


class _Method(nn.Module):
    """A method of a module as a module, for torch.func.functional_call; its parameters are `of.<name>`."""

    def __init__(self, of: nn.Module, method: str) -> None:
        super().__init__()
        self.of = of
        self.method = method

    def forward(self, *inputs: Tensor) -> object:
        return getattr(self.of, self.method)(*inputs)


@dataclass(frozen=True)
class Subject:
    """A block of a layer, or a norm of a width, of two runs.

    who: how a message begins; names: the own blocks and norms that its call runs; params: name in the module ->
    (runs, *shape); streams: how many of its inputs it was given to return; parts: what it asked for and must use;
    widths: the axes of its input after the sequence's.
    """

    who: str
    names: list[str]
    module: nn.Module
    method: str
    params: dict[str, Tensor]
    streams: int
    parts: tuple[str, ...]
    widths: tuple[int, ...]

    def call(self, params: dict[str, Tensor], inputs: list[Tensor], how: str = "") -> list[Tensor]:
        """The streams that it returns, (runs, B, T, ...), with their shape and dtype checked."""
        module = _Method(self.module, self.method)

        def of_one_run(params: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
            named = {f"of.{name}": p for name, p in params.items()}
            return self._streams(torch.func.functional_call(module, named, tuple(inputs)), inputs[0])

        try:
            return list(torch.func.vmap(of_one_run)(params, inputs))
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            with _blaming(self.who, self.names, how):  # without the run axis the user's own error reads best
                of_one_run({name: p[0] for name, p in params.items()}, [t[0] for t in inputs])
            raise _torch_says(self.who, self.names, error) from error

    def _streams(self, out: object, x: Tensor) -> tuple[Tensor, ...]:
        streams = out if isinstance(out, tuple) and self.streams == 2 else (out,)
        if len(streams) != self.streams or not all(isinstance(s, Tensor) for s in streams):
            what = f"a {type(out).__name__}" + (f" of {len(out)}" if isinstance(out, tuple) else "")
            wanted = "one tensor" if self.streams == 1 else "two tensors, since it takes r"
            raise _broken(
                self.who, RETURN, f"it returns {'None' if out is None else what} instead of {wanted}",
                "return x" if self.streams == 1 else "return x, r",
            )  # fmt: skip
        for s in streams:
            if s.shape != x.shape:
                raise _broken(
                    self.who, SHAPE, f"it makes {tuple(s.shape)} of {tuple(x.shape)} (sequences, tokens, width)",
                    "return the shape of x",
                )  # fmt: skip
            if s.dtype != x.dtype:
                raise _broken(
                    self.who, DTYPE, f"it makes {s.dtype} of {x.dtype}", "give its constants the dtype of x"
                )  # fmt: skip
        return streams


def _block(block: Block, layer: int, stacked: dict[str, Tensor], model: ModelConfig) -> Subject:
    prefix = f"blocks.{layer}."
    return Subject(
        who=f"{model.placement}, layer {layer}",
        names=[name for name in (model.placement, resolve(model).norm) if sources.is_own(name)],
        module=block,
        method="call",
        params={name.removeprefix(prefix): p for name, p in stacked.items() if name.startswith(prefix)},
        streams=2 if "r" in block.wanted else 1,
        parts=tuple(name for name in block.wanted if name not in sources.NUMBERS),
        widths=(model.d_model,),
    )


def _norms(transformer: Transformer, stacked: dict[str, Tensor], model: ModelConfig) -> list[Subject]:
    """One norm of each shape that the model gives to norms."""
    spec, found = resolve(model).norm, {}
    for path, module in transformer.named_modules():
        name = path.rpartition(".")[2]
        if name == "own" or not (isinstance(module, FunctionNorm) or made_by(module)):
            continue
        full = ".attn." in path and resolve(model).qk_norm == "full"
        width = model.d_model if full else norm_width(model, name)
        heads = name in ("q_norm", "k_norm", "v_norm") and not full
        widths = (model.n_heads, width) if heads else (width,)
        found[widths] = Subject(
            who=f"{spec}, width {width}",
            names=[spec],
            module=module,
            method="forward",
            params={n.removeprefix(f"{path}."): p for n, p in stacked.items() if n.startswith(f"{path}.")},
            streams=1,
            parts=("x",),
            widths=widths,
        )
    return list(found.values())


def _embedded(transformer: Transformer, stacked: dict[str, Tensor], vocab_size: int, seq_len: int) -> list[Tensor]:
    """x_0 twice, (runs, sequences, tokens, width): the two streams begin as one, and may not be one tensor here."""
    rng = np.random.Generator(np.random.Philox(key=0))
    tokens = torch.from_numpy(rng.integers(0, vocab_size, (2, 2, seq_len))).to(next(iter(stacked.values())).device)
    method = _Method(transformer, "embedding")

    def of_one_run(params: dict[str, Tensor], tokens: Tensor) -> Tensor:
        named = {f"of.{name}": p for name, p in params.items()}
        x: Tensor = torch.func.functional_call(method, named, (tokens,))
        return x

    x = torch.func.vmap(of_one_run)(stacked, tokens)
    return [x, x.clone()]


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape, np.float32))


# ---- the calls ------------------------------------------------------------------------------------------


def _check_calls(subject: Subject, inputs: list[Tensor]) -> list[Tensor]:
    """The streams that a subject makes of these, (runs, sequences, tokens, ...), when it breaks no rule."""
    with torch.no_grad():
        out, called = _check_once(subject, inputs)
        _check_repeats(subject, inputs, out)
    _check_backward(subject, inputs, called)
    return [*out, *inputs[len(out) :]]


def _check_once(subject: Subject, inputs: list[Tensor]) -> tuple[list[Tensor], set[str]]:
    """What it returns, and the names of the modules that it called."""
    watched = {
        "x": inputs[:1],
        "r": inputs[1:],
        "a parameter": list(subject.params.values()),
        "a buffer": list(subject.module.buffers()),
    }
    before = {what: [t.clone() for t in tensors] for what, tensors in watched.items()}
    generators = _generators()
    called: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in subject.module.named_children()
    ]
    try:
        out = subject.call(subject.params, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    after = {**watched, "a buffer": list(subject.module.buffers())}
    for what, tensors in after.items():
        if not all(torch.equal(a, b) for a, b in zip(tensors, before[what], strict=True)):
            raise _broken(subject.who, IN_PLACE, f"it changes {what}", "compute a new tensor, as in x = x + y")
    if _generators() != generators:
        raise _broken(subject.who, RANDOM, "it draws from numpy's or Python's generator", "leave them out")
    if not all(torch.isfinite(o).all() for o in out):
        raise _broken(subject.who, FINITE, "it returns inf or NaN", "mind logarithms, roots and divisions by 0")
    return out, called


def _check_repeats(subject: Subject, inputs: list[Tensor], out: list[Tensor]) -> None:
    p = subject.params
    if (by := _difference(subject.call(p, inputs), out)) is not None:
        raise _broken(
            subject.who, STATE, f"called again on the same numbers it returns others ({by})",
            "leave out what changes between calls: counters, clocks, random numbers",
        )  # fmt: skip
    others = [_replaced(t, (slice(None), 1), seed) for seed, t in enumerate(inputs, start=1)]
    if (by := _difference([o[:, :1] for o in subject.call(p, others)], [o[:, :1] for o in out])) is not None:
        raise _broken(
            subject.who, SEQUENCES, f"another second sequence changes the first ({by})",
            "compute over the last axis, within one position",
        )  # fmt: skip
    alone = subject.call(p, [t[:, 1:] for t in inputs], "with one sequence instead of two")
    if (by := _difference(alone, [o[:, 1:] for o in out])) is not None:
        raise _broken(
            subject.who, SEQUENCES, f"a sequence gives something else when it is alone ({by})",
            "compute each sequence by itself",
        )  # fmt: skip
    last = inputs[0].shape[2] - 1
    for cut in (last, (last + 1) // 2, 1):
        what = "another last token changes" if cut == last else "other later tokens change"
        others = [_replaced(t, (slice(None), slice(None), slice(cut, None)), seed) for seed, t in enumerate(inputs, 3)]
        now = subject.call(p, others)
        if (by := _difference([o[:, :, :cut] for o in now], [o[:, :, :cut] for o in out])) is not None:
            raise _broken(
                subject.who, LATER, f"{what} the positions before it ({by})",
                "at a position read only it and earlier ones; attn is the way to read those",
            )  # fmt: skip
    one = subject.call({n: t[:1] for n, t in p.items()}, [t[:1] for t in inputs], "with one run instead of two")
    if (by := _difference(one, [o[:1] for o in out])) is not None:
        raise _broken(
            subject.who, RUNS, f"a run gives something else when it is alone ({by})",
            "keep no tensor between calls",
        )  # fmt: skip


def _replaced(t: Tensor, where: tuple[slice | int, ...], seed: int) -> Tensor:
    """A copy with other numbers at a place, of another mean and three times the size."""
    out = t.clone()
    size = t.square().mean().sqrt()
    out[where] = size * (1 + 3 * _normal(tuple(out[where].shape), seed).to(t.device))
    return out


def _difference(some: list[Tensor], others: list[Tensor]) -> str | None:
    """By how much two results differ, in words; None where it is rounding."""
    for a, b in zip(some, others, strict=True):
        if a.numel() and (largest := float((a - b).abs().max())) > TOLERANCE * float(b.abs().max()):
            return f"by {largest:.2g}, the largest value being {float(b.abs().max()):.2g}"
        if a.numel() and not torch.isfinite(a).all():
            return "to inf or NaN"
    return None


def _check_backward(subject: Subject, inputs: list[Tensor], called: set[str]) -> None:
    leaves = {name: p.detach().clone().requires_grad_() for name, p in subject.params.items()}
    streams = [t.detach().clone().requires_grad_() for t in inputs]
    out = subject.call(leaves, streams, "with gradients")
    if not all(o.requires_grad for o in out):
        raise _broken(subject.who, USED, "what it returns has no gradient", "leave out detach() and no_grad()")
    loss = torch.stack([(o * _normal(tuple(o.shape), seed).to(o.device)).sum() for seed, o in enumerate(out)]).sum()
    known = {id(t) for t in (*leaves.values(), *streams)}
    strangers = [t for t in _leaves_of(loss) if id(t) not in known]
    if strangers:
        raise _broken(
            subject.who, OUTSIDE, f"it uses a parameter of shape {tuple(strangers[0].shape)} that no run trains",
            "write an nn.Module class that holds it",
        )  # fmt: skip
    try:
        grads = torch.autograd.grad(loss, [*streams, *leaves.values()], allow_unused=True)
    except RuntimeError as error:
        raise _torch_says(subject.who, subject.names, error) from error
    by_name = dict(zip([*sources.STREAMS[: len(streams)], *leaves], grads, strict=True))
    for part in (*subject.parts, *subject.params):
        theirs = [g for name, g in by_name.items() if name == part or name.startswith(f"{part}.")]
        if any(g is None for g in theirs) or (part in sources.NORMS + sources.SUBLAYERS and part not in called):
            raise _broken(
                subject.who, USED, f"{part} has no part in what it returns",
                "use it" if part in (*sources.SUBLAYERS, "x") else "use it, or leave it out",
            )  # fmt: skip
    if not all(torch.isfinite(g).all() for g in grads if g is not None):
        raise _broken(subject.who, FINITE, "its gradient is inf or NaN", "mind roots, norms and divisions at 0")


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """The tensors in which backward would accumulate a gradient."""
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


# ---- whose error it is ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _blaming(who: str, names: list[str], how: str = "") -> Iterator[None]:
    """Turn an error that the user's code raises into one line; ours stay as they are."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        files = [path for name in names for path in sources.files_of(name)]
        if sources.place_of(error, files) is None:
            raise
        raise ConfigError(f"{who}: {sources.describe(error, files)}{f' ({how})' if how else ''}") from error


def _torch_says(who: str, names: list[str], error: BaseException) -> ConfigError:
    """The rule behind what torch says of code that runs well where nothing is batched or differentiated."""
    files = [path for name in names for path in sources.files_of(name)]
    place = sources.place_of(error, files)
    for says, rule, what, do in TORCH_SAYS:
        if re.search(says, str(error)):
            return _broken(f"{who}{f' ({place})' if place else ''}", rule, what, do)
    return ConfigError(f"{who}: torch cannot batch it over runs, or differentiate it: {sources.describe(error, files)}")
