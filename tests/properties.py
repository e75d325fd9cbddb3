"""On how many examples a property is tried: few by default, always the same ones.

`NORMSTUDY_EXAMPLES=10000 pytest -n0 tests/training/test_norms.py` tries it for minutes.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

PROPERTY = settings(
    max_examples=int(os.environ.get("NORMSTUDY_EXAMPLES", "60")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # the first example waits for torch
)
