"""Hooks that never raise into training, and that a copy of the model does not take along."""

from __future__ import annotations

import contextlib
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
