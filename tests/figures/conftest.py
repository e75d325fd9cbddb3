"""Draw every figure of these tests with the settings that `plot_study` uses."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import pytest

from normstudy.figures import style


@pytest.fixture(autouse=True)
def look_of_figures() -> Iterator[None]:
    with matplotlib.rc_context(style.rc()):  # type: ignore[arg-type]
        yield
