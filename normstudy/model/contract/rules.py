"""The rules that a user's own block or norm must keep, and the one-line error that names a broken rule."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from normstudy.config import sources
from normstudy.errors import ConfigError

RETURN = "return the new stream"
SHAPE = "keep the shape"
DTYPE = "keep the dtype"
IN_PLACE = "change no tensor in place"
FINITE = "be finite at initialization"
RANDOM = "use no random numbers"
STATE = "return the same on every call"
SEQUENCES = "use no statistics across sequences"
LATER = "use no later tokens"
RUNS = "use nothing from other runs"
CONTROL = "let no control flow depend on data"
USED = "use every argument"
OUTSIDE = "use no parameters from outside"

# (regular expression found in torch's error message, broken rule, what is wrong, what to do)
TORCH_SAYS = (
    ("called random operation", RANDOM, "it draws random numbers (dropout does)", "leave them out"),
    (
        "data-dependent control flow|torch.allclose|aten::equal", CONTROL, "a tensor decides (if, while, assert, max)",
        "compute both branches and choose with torch.where",
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
        "accessing `data`|leaf Variable", IN_PLACE, "it changes a tensor without autograd noticing",
        "compute a new tensor",
    ),
    (
        "not being vmapped over|match the broadcast shape", IN_PLACE,
        "it writes into a tensor that all runs share (a buffer, torch.zeros)",
        "compute a new tensor, or begin with torch.zeros_like(x)",
    ),
)  # fmt: skip


def broken(who: str, rule: str, what: str, do: str) -> ConfigError:
    """The error for a broken rule. who: the user's block or norm; what: what is wrong; do: what to do."""
    return ConfigError(f'{who} breaks the rule "{rule}": {what}: {do}')


@contextlib.contextmanager
def blaming(who: str, specs: Sequence[str], how: str = "") -> Iterator[None]:
    """Turn an error raised in the user's code into a one-line ConfigError; let normstudy's own errors pass.

    specs: the user's blocks and norms that the `with` body runs, as module:function. how: a note to append to the line.
    """
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
    """The error for user code that runs for one run, but that torch cannot batch over runs or differentiate."""
    files = _files(specs)
    place = sources.place_of(error, files)
    for says, rule, what, do in TORCH_SAYS:
        if re.search(says, str(error)):
            return broken(f"{who}{f' ({place})' if place else ''}", rule, what, do)
    return ConfigError(f"{who}: torch cannot batch it over runs, or differentiate it: {sources.describe(error, files)}")


def _files(specs: Sequence[str]) -> list[str]:
    return [path for spec in specs for path in sources.files_of(spec)]
