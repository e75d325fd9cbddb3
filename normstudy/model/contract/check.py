"""Call a user's own block or norm before any run trains, and report the first rule (rules.py) that it breaks.

Some mistakes in a user's code would make the runs of a batch affect each other. torch reports about half of them. To
find the other half, `check` compares the results of several calls of each block, and of the norm at each width of the
model. A call has two runs with initial parameters, and two sequences of data.seq_len tokens per run:

    call                                                detects
    first                                               a wrong result, changes in place, inf or NaN
    the same call again                                 random numbers, a state that changes between calls
    second sequence replaced; first sequence removed    statistics across sequences
    last token replaced; several later tokens replaced  access to later tokens
    second run removed                                  access to other runs
    with gradients                                      unused or detached arguments, parameters from outside
"""

import functools
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import nn

from normstudy.config import ModelConfig, RunConfig, resolve, sources
from normstudy.errors import ConfigError, nearest
from normstudy.model.contract import trial
from normstudy.model.contract.rules import DTYPE, FINITE, OUTSIDE, RANDOM, SEQUENCES, USED, blaming, broken
from normstudy.model.init import init_params
from normstudy.model.own import asked_of, construct, load, move
from normstudy.model.transformer import Block, build


def check(config: RunConfig, vocab_size: int, device: str = "cpu") -> None:
    """Raise a ConfigError if the user's own placement or norm breaks a rule. Discard what the user's code prints."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
        _check(config, vocab_size, device)


def _check(config: RunConfig, vocab_size: int, device: str) -> None:
    model = config.model
    specs = [spec for spec in (resolve(model).norm, model.placement) if sources.is_own(spec)]
    who = " and ".join(specs)
    generators, dtype = trial.generators(), torch.get_default_dtype()
    found = {spec: load(spec) for spec in specs}
    import_draws = trial.generators() != generators
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
        raise broken(who, DTYPE, "importing the module changes torch's default dtype", f"leave the default at {dtype}")
    for spec in specs:
        check_arguments = _check_block if spec == model.placement else _check_norm
        check_arguments(spec, found[spec], model)
    with blaming(who, specs):
        transformer = build(config, vocab_size)
        stacked = init_params(transformer, [model, model], [config.seed, config.seed + 1])
    move(transformer, device)
    stacked = {name: p.to(device) for name, p in stacked.items()}
    if sources.is_own(resolve(model).norm):
        for subject in trial.norms(transformer, stacked, model):
            trial.check_calls(subject, [trial.normal((2, 2, config.data.seq_len, *subject.widths), seed=0).to(device)])
    if sources.is_own(model.placement):
        streams = trial.embedded(transformer, stacked, vocab_size, config.data.seq_len)
        for layer, block in enumerate(transformer.blocks):
            assert isinstance(block, Block)
            streams = trial.check_calls(trial.block(block, layer, stacked, model), streams)
    if import_draws:
        what = "importing the module draws random numbers, which differ between processes"
        raise broken(who, RANDOM, what, "draw from a separate generator, such as torch.Generator().manual_seed(0)")


def _check_block(spec: str, found: Callable[..., object], model: ModelConfig) -> None:
    """Raise a ConfigError if a block's arguments, or the module that a block class constructs, break a rule."""
    cls = _module_class(spec, found)
    names = _check_names(spec, found, sources.BLOCK_ARGUMENTS)
    for sublayer in sources.SUBLAYERS:
        if sublayer not in names:
            what = f"the block has no argument {sublayer}, one of its two sublayers"
            raise broken(spec, USED, what, f"take {sublayer} and use it")
    if cls is not None:
        _check_constructor(spec, functools.partial(cls, **asked_of(cls, 0, model)))


def _check_norm(spec: str, found: Callable[..., object], model: ModelConfig) -> None:
    """Raise a ConfigError if a norm's arguments, or the module that a norm class constructs, break a rule."""
    cls = _module_class(spec, found)
    names = _check_names(spec, found, sources.NORM_ARGUMENTS) if cls is None else []
    if "eps" not in names and model.norm_eps != ModelConfig.norm_eps:
        raise ConfigError(
            f"{spec}: this norm takes no argument eps, so model.norm_eps {model.norm_eps:g} would have no effect: "
            "leave out model.norm_eps, or write a function that takes eps"
        )
    if cls is None:
        return
    for what, called, given in (
        ("the constructor must take the width as the only argument", cls, ["width"]),
        ("the forward method must take x as the only argument", cls.forward, ["self", "x"]),
    ):
        try:
            inspect.signature(called).bind(*given)
        except TypeError as error:
            raise ConfigError(f"{spec}: {what}: {error}") from None
    _check_constructor(spec, functools.partial(cls, model.d_model))


def _module_class(spec: str, found: object) -> type[nn.Module] | None:
    """Return `found` if it is a subclass of nn.Module, None if it is a function. Otherwise raise a ConfigError."""
    if isinstance(found, nn.Module):
        what = f"this is a {type(found).__name__} object, whose parameters all runs would share"
        do = "give the name of the class instead, so that each run constructs a module of its own"
        raise broken(spec, OUTSIDE, what, do)
    if not isinstance(found, type):
        return None
    if not issubclass(found, nn.Module):
        raise ConfigError(f"{spec}: this class is not a subclass of nn.Module: make it a subclass, or write a function")
    if found.forward is nn.Module.forward:
        raise ConfigError(f"{spec}: this class has no forward method: add forward, which takes x and returns the new x")
    return found


def _check_names(spec: str, found: Callable[..., object], known: tuple[str, ...]) -> list[str]:
    """Return the names of a function's arguments; raise a ConfigError if a name is not in `known` or x is missing."""
    try:
        parameters = sources.parameters(found)
    except (TypeError, ValueError):  # a function written in C may not have a signature
        raise ConfigError(
            f"{spec}: this function's argument names cannot be read: write your own function that calls it"
        ) from None
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{spec}: {parameter} takes any arguments: list them by name, such as (x, attn)")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"{spec}: argument {name} cannot be passed by name: remove the slash from the def")
        if name not in known:
            raise ConfigError(f"{spec}: unknown argument {name}; available: {', '.join(known)}.{nearest(name, known)}")
    if "x" not in parameters:
        raise ConfigError(f"{spec}: the argument x, the residual stream, is missing: add it")
    return list(parameters)


def _check_constructor(spec: str, make: Callable[[], nn.Module]) -> None:
    """Construct a module twice with one seed and once with another. Raise a ConfigError if a tensor breaks a rule."""
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


@contextmanager
def _uninitialized_is_nan() -> Iterator[None]:
    """Make torch.empty return NaN instead of arbitrary values, because NaN reveals uninitialized parameters."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
