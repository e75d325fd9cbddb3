"""Check the arguments of `normstudy.watch` before anything is written or hooked."""

import math
import operator
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from normstudy.config.checks import check_study_name
from normstudy.errors import ConfigError

LARGEST = 2**31 - 1  # the largest seed, and the largest number of steps


def inner_model(model: object) -> nn.Module:
    """Unwrap a model from DDP and torch.compile: hooks on the inner model also run when the wrapper is called."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is of type {type(model).__name__}: give the nn.Module that is trained")
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def inner_optimizers(given: object) -> list[Optimizer]:
    """Unwrap optimizers from accelerate and Lightning, whose wrappers accept no step hooks."""
    found: list[Any] = [given] if isinstance(given, Optimizer) or not isinstance(given, Sequence) else list(given)
    for i, one in enumerate(found):
        if type(one).__module__.partition(".")[0] == "accelerate" or hasattr(one, "_on_before_step"):
            found[i] = one = getattr(one, "optimizer", one)
        if not isinstance(one, Optimizer):
            raise ConfigError(f"optimizer is of type {type(one).__name__}: give a torch Optimizer or a list of them")
        if not hasattr(one, "_optimizer_step_pre_hooks") or not getattr(type(one).step, "hooked", False):
            raise ConfigError(
                f"{type(one).__name__} accepts no step hooks, because its __init__ does not call Optimizer.__init__: "
                "add this call or, if it wraps another optimizer, give the wrapped optimizer"
            )
    if not found:
        raise ConfigError("the list of optimizers is empty: give at least one")
    if (n := len({id(one) for one in found})) < len(found):
        raise ConfigError(f"the list of {len(found)} optimizers has only {n} different ones: give each optimizer once")
    return found


def check_training(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Raise ConfigError if the optimizers do not train this model, or if watch does not support the model."""
    name, params = type(model).__name__, list(model.parameters())
    if not any(p.requires_grad for p in params):
        raise ConfigError(f"{name} has no parameters that are trained: give the model that is trained")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in params):
        raise ConfigError(f"{name} has parameters without a shape yet: call the model once before the watch starts")
    ids = {id(p) for p in params}
    for one in optimizers:
        if not any(id(p) in ids for group in one.param_groups for p in group["params"]):
            raise ConfigError(
                f"the optimizer {type(one).__name__} trains no parameter of {name}: give the model that it trains"
            )
    held = [id(p) for one in optimizers for group in one.param_groups for p in group["params"] if id(p) in ids]
    if n := sum(count > 1 for count in Counter(held).values()):
        raise ConfigError(f"{n} parameters are in two optimizers or more: give only one of these optimizers")
    sharded = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if sharded or any(type(p).__name__ == "DTensor" or type(p.data).__name__ == "DTensor" for p in params):
        raise ConfigError("the parameters are sharded (FSDP), which watch does not support: train without FSDP")
    if _was_compiled(model):
        raise ConfigError(
            f"a compiled {name} was called before this watch started, so the compiled graph contains no hooks: "
            "start the watch before the first call, or call torch._dynamo.reset() first"
        )


def _was_compiled(model: nn.Module) -> bool:
    """Return whether torch.compile has cached a graph of the model's class. The model would reuse it, without hooks."""
    code = getattr(type(model).forward, "__code__", None)
    if code is None or "torch._dynamo.eval_frame" not in sys.modules:
        return False
    found = getattr(sys.modules["torch._dynamo.eval_frame"], "_debug_get_cache_entry_list", None)
    return found is not None and bool(found(code))


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return watch's options, converted to Python's built-in types. Raise ConfigError if a value is not allowed."""
    kept = dict(options)
    for name in ("study", "results_dir", "blocks", "resume"):
        if not isinstance(kept[name], str | os.PathLike if name == "results_dir" else str | None):
            raise ConfigError(f"{name} {kept[name]!r} is not text: give a string")
    if kept["study"] is None:
        raise ConfigError("study is missing: give the name of a study, such as study='mine'")
    check_study_name(kept["study"])
    kept["results_dir"] = os.fspath(kept["results_dir"])
    for name, least in (("every", 1), ("dense", 0), ("seed", 0), ("step", 0)):
        value = kept[name]
        try:
            kept[name] = value if value is None and name in ("seed", "step") else operator.index(value)
        except TypeError:
            raise ConfigError(f"{name} {value!r} is not a whole number: give an int") from None
        if kept[name] is not None and not least <= kept[name] <= LARGEST:
            raise ConfigError(f"{name} {value!r} must be {least} or more, and at most {LARGEST}")
    if kept["step"] is not None and kept["resume"] is None:
        raise ConfigError(f"step={kept['step']} needs resume: set resume to the id of the run to continue")
    if kept["scaler"] is not None and not hasattr(kept["scaler"], "_scale"):
        raise ConfigError(f"scaler is of type {type(kept['scaler']).__name__}: give the torch.amp.GradScaler")
    if kept["names"] is not None and not callable(kept["names"]):
        raise ConfigError(f"names={kept['names']!r} is not callable: give a function that takes a parameter's name")
    kept["config"] = None if kept["config"] is None else _config(kept["config"])
    return {**kept, **_entropies(kept["unigram_entropy"], kept["bigram_entropy"])}


def _entropies(unigram: Any, bigram: Any) -> dict[str, float | None]:
    if unigram is None and bigram is None:
        return {"unigram_entropy": None, "bigram_entropy": None}
    try:
        one, two = float(unigram), float(bigram)
    except (TypeError, ValueError):
        raise ConfigError(
            f"unigram_entropy {unigram!r} and bigram_entropy {bigram!r} must both be numbers: an outcome needs both"
        ) from None
    if not 0 <= two <= one < math.inf:
        raise ConfigError(f"bigram_entropy {two:g} must be between 0 and unigram_entropy {one:g}")
    return {"unigram_entropy": one, "bigram_entropy": two}


def _config(given: object) -> dict[str, Any]:
    """Convert a config for JSON: NumPy and torch numbers to Python's, and values of unknown types to text."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"config is of type {type(given).__name__}: give a dictionary")
    for name in given:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"config has the key {name!r}, but keys must be text that is not empty: rename this key")
    return {name: _plain(value, 0) for name, value in given.items()}


def _plain(value: Any, depth: int) -> Any:
    if depth > 50:
        raise ConfigError("config contains itself, or is nested more than 50 levels deep: give a flatter dictionary")
    if isinstance(value, Mapping):
        return {str(name): _plain(one, depth + 1) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, depth + 1) for one in value]
    if not isinstance(value, bool | int | float | str | None) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a scalar of NumPy or torch
    if isinstance(value, float) and math.isfinite(value):
        return value
    # JSON cannot store infinity, and UTF-8 cannot encode half a surrogate pair.
    return value if isinstance(value, bool | int | None) else str(value).encode(errors="replace").decode()
