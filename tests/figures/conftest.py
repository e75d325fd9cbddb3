"""Draw every figure of these tests with the settings that `plot_study` uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from normstudy.figures import style


@pytest.fixture(autouse=True)
def look_of_figures() -> Iterator[None]:
    with style.rc():
        yield
