"""On how many examples a property is tried: few by default, always the same ones.

`NORMSTUDY_EXAMPLES=10000 pytest -n0 --hypothesis-seed=1 tests/training/test_norms.py` tries others, for minutes.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("NORMSTUDY_EXAMPLES")
PROPERTY = settings(
    max_examples=int(EXAMPLES or 40),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # the first example waits for torch
)
