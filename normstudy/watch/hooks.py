"""Hooks that never raise into training, and that a copy of the model does not take along."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any


class Hook:
    """Call a function, and hand its errors to `failed`. A copy of a hook, as in a model's deepcopy, does nothing."""

    def __init__(self, call: Callable[..., object] | None, failed: Callable[[Exception], None] | None = None) -> None:
        self.call, self.failed = call, failed

    def __call__(self, *args: object) -> Any:
        if self.call is not None:
            try:
                return self.call(*args)
            except Exception as error:
                assert self.failed is not None
                self.failed(error)
        return None

    def __deepcopy__(self, memo: object) -> Hook:
        return Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a function of the standard library that does nothing: who loads a saved model needs no normstudy."""
        return getattr, (contextlib.nullcontext(), "__exit__")


def depth_of_stack() -> int:
    """Return how many calls are at work above the caller."""
    frame, depth = sys._getframe(1), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth
