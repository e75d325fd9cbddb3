"""Each row of docs/hosts.md names a test that is there."""

from __future__ import annotations

import re

from pages import page
from test_when_things_go_wrong import functions


def test_every_row_names_a_test() -> None:
    rows = page("docs/hosts.md").split("|---|---|---|\n")[1].splitlines()
    named = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 15
    assert [row for row, tests in zip(rows, named, strict=True) if len(tests) != 1] == []
    assert [name for ((file, name),) in named if name not in functions(file)] == []
