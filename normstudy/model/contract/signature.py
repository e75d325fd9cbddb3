"""Check the arguments and the constructor of a user's own block or norm, before calling it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator

import torch
from torch import nn

from normstudy.config import ModelConfig, sources
from normstudy.errors import ConfigError, nearest
from normstudy.model.contract.rules import FINITE, OUTSIDE, RANDOM, SEQUENCES, USED, blaming, broken
from normstudy.model.own import asked_of, construct

Maker = Callable[[], nn.Module]


def block_maker(spec: str, found: Callable[..., object], model: ModelConfig) -> Maker | None:
    """Check a block's arguments. If `found` is a class, return a function that makes layer 0's module, else None."""
    cls = _module_class(spec, found)
    names = _check_names(spec, found, sources.BLOCK_ARGUMENTS)
    for sublayer in sources.SUBLAYERS:
        if sublayer not in names:
            what = f"the block lacks the argument {sublayer}, one of its two sublayers"
            raise broken(spec, USED, what, f"take {sublayer} and use it")
    return None if cls is None else functools.partial(cls, **asked_of(cls, 0, model))


def norm_maker(spec: str, found: Callable[..., object], model: ModelConfig) -> Maker | None:
    """Check a norm. If `found` is a class, return a function that makes a norm of width d_model, else None."""
    cls = _module_class(spec, found)
    names = _check_names(spec, found, sources.NORM_ARGUMENTS) if cls is None else []
    if "eps" not in names and model.norm_eps != ModelConfig.norm_eps:
        raise ConfigError(
            f"{spec}: this norm takes no argument eps, so model.norm_eps {model.norm_eps:g} would have no effect: "
            "leave out model.norm_eps, or write a function that takes eps"
        )
    if cls is None:
        return None
    for what, called, given in (
        ("the constructor must take the width as the only argument", cls, ["width"]),
        ("the forward method must take x as the only argument", cls.forward, ["self", "x"]),
    ):
        try:
            inspect.signature(called).bind(*given)
        except TypeError as error:
            raise ConfigError(f"{spec}: {what}: {error}") from None
    return functools.partial(cls, model.d_model)


def _module_class(spec: str, found: object) -> type[nn.Module] | None:
    """Return `found` if it is a subclass of nn.Module, None if it is a function. Otherwise raise a ConfigError."""
    if isinstance(found, nn.Module):
        what = f"this is a {type(found).__name__} object, whose parameters all runs would share"
        do = "give the name of the class instead, so that each run constructs a module of its own"
        raise broken(spec, OUTSIDE, what, do)
    if not isinstance(found, type):
        return None
    if not issubclass(found, nn.Module):
        raise ConfigError(f"{spec}: this class is no subclass of nn.Module: make it a subclass, or write a function")
    if found.forward is nn.Module.forward:
        raise ConfigError(f"{spec}: this class has no forward method: add one that takes x and returns the new x")
    return found


def _check_names(spec: str, found: Callable[..., object], allowed: tuple[str, ...]) -> list[str]:
    """Return the names of a function's arguments; raise a ConfigError if a name is not in `allowed` or x is missing."""
    try:
        parameters = sources.parameters(found)
    except (TypeError, ValueError):  # functions written in C may have no signature
        raise ConfigError(
            f"{spec}: this function's argument names cannot be read: write your own function that calls it"
        ) from None
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{spec}: {parameter} accepts any argument: name each argument, as in x, attn")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"{spec}: argument {name} cannot be passed by name: remove the slash from the def")
        if name not in allowed:
            raise ConfigError(
                f"{spec}: unknown argument {name}; available: {', '.join(allowed)}.{nearest(name, allowed)}"
            )
    if "x" not in parameters:
        raise ConfigError(f"{spec}: the argument x, the residual stream, is missing: add it")
    return list(parameters)


def check_constructor(spec: str, make: Maker) -> None:
    """Construct a module three times. Raise a ConfigError if the module's parameters or buffers break a rule."""
    with blaming(spec, [spec]), _uninitialized_is_nan():
        first, again, other = (construct(make, seed) for seed in (0, 0, 1))
    for module in first.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            what = f"the module has a batch norm ({type(module).__name__})"
            raise broken(spec, SEQUENCES, what, "use a norm over the last axis")
    for name, p in first.named_parameters():
        if nn.parameter.is_lazy(p):
            raise ConfigError(f"{spec}: parameter {name} has no shape yet: set its shape in the constructor")
        if not p.requires_grad:
            raise ConfigError(
                f"{spec}: parameter {name} has requires_grad=False: register it as a buffer, which is not trained"
            )
        if not torch.isfinite(p).all():
            raise broken(spec, FINITE, f"parameter {name} is inf, NaN or uninitialized (torch.empty)", "initialize it")
        if not torch.equal(p, again.get_parameter(name)):
            what = f"parameter {name} differs between two constructions with the same torch seed"
            raise broken(spec, RANDOM, what, "draw it with torch, not with numpy or random")
    for name, buffer in first.named_buffers():
        if not torch.equal(buffer, other.get_buffer(name)):
            what = f"buffer {name} is random, but all runs of a batch share it"
            raise broken(spec, RANDOM, what, "make it a parameter, or draw it from a torch.Generator with a fixed seed")


@contextlib.contextmanager
def _uninitialized_is_nan() -> Iterator[None]:
    """Make torch.empty return NaN instead of arbitrary values, so that uninitialized parameters are detected."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
