"""Define hooks that never raise an exception into the training, and that do nothing in a copy of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


class Hook:
    """Call a function, and pass its exceptions to `failed`. A copy, as in a deep copy of a model, does nothing."""

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
        """Pickle a standard-library function that does nothing, so that a saved model loads without normstudy."""
        return getattr, (contextlib.nullcontext(), "__exit__")
