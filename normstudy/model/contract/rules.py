"""List the rules for a user's own block or norm, and make the one-line error for a broken rule."""

import contextlib
import re
from collections.abc import Iterator, Sequence

from normstudy.config import sources
from normstudy.errors import ConfigError

RETURN = "return the new stream"
SHAPE = "keep the shape"
DTYPE = "keep the dtype"
IN_PLACE = "change no tensor in place"
FINITE = "return finite values at initialization"
RANDOM = "use no random numbers"
STATE = "return the same value on every call"
SEQUENCES = "use no statistics across sequences"
LATER = "use no later tokens"
RUNS = "use nothing from other runs"
CONTROL = "let no control flow depend on a tensor's values"
USED = "use every argument"
OUTSIDE = "use no parameters from outside the block or norm"

# (regular expression that torch's error message matches, broken rule, what is wrong, what to do)
TORCH_SAYS = (
    ("called random operation", RANDOM, "the code draws random numbers, as dropout does", "leave them out"),
    (
        "data-dependent control flow|torch.allclose|aten::equal", CONTROL,
        "the code branches on a tensor's values (if, while, assert, max)", "compute both branches and use torch.where",
    ),
    ("calling .item", CONTROL, ".item(), float() or int() turns a tensor into a number", "use the tensor itself"),
    ("doesn't have storage", CONTROL, "numpy or .tolist() turns a tensor into numbers", "use the tensor itself"),
    (
        "dynamic shape|masked_select", CONTROL, "a result's shape depends on values, as in x[x > 0] or nonzero",
        "use torch.where, or multiply by a mask",
    ),
    ("Batch norm got a batched", SEQUENCES, "batch norm keeps running statistics", "use a norm over the last axis"),
    (
        "modified by an inplace", IN_PLACE, "the code changes a tensor that the backward pass needs",
        "compute a new tensor",
    ),
    (
        "accessing `data`|leaf Variable", IN_PLACE, "autograd cannot track how the code changes a tensor",
        "compute a new tensor",
    ),
    (
        "not being vmapped over|match the broadcast shape", IN_PLACE,
        "the code writes into a tensor that all runs share, such as a buffer or torch.zeros",
        "compute a new tensor, or write into torch.zeros_like(x)",
    ),
)  # fmt: skip


def broken(who: str, rule: str, what: str, do: str) -> ConfigError:
    """Return the error for a broken rule. who: the user's block or norm. what: what is wrong. do: what to do."""
    return ConfigError(f'{who} breaks the rule "{rule}": {what}: {do}')


@contextlib.contextmanager
def blaming(who: str, specs: Sequence[str], how: str = "") -> Iterator[None]:
    """Turn an error in the user's code `specs` into a one-line ConfigError. how: a note for the line's end."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        files = _files(specs)
        if sources.place_of(error, files) is None:
            raise
        raise ConfigError(f"{who}: {sources.describe(error, files)}{f' ({how})' if how else ''}") from error


def torch_says(who: str, specs: Sequence[str], error: BaseException) -> ConfigError:
    """Return the error for user code that works for one run, but that torch cannot batch over runs or differentiate."""
    files = _files(specs)
    place = sources.place_of(error, files)
    for says, rule, what, do in TORCH_SAYS:
        if re.search(says, str(error)):
            return broken(f"{who}{f' ({place})' if place else ''}", rule, what, do)
    return ConfigError(
        f"{who}: torch cannot batch or differentiate this code, so use other torch operations: "
        f"{sources.describe(error, files)}"
    )


def _files(specs: Sequence[str]) -> list[str]:
    return [path for spec in specs for path in sources.files_of(spec)]
