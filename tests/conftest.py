"""The environment that bitwise equality needs, set before anything imports torch."""

from __future__ import annotations

import os
import sys

from numerics import NUMERICS_ENV

# torch reads these once, when it is loaded: set too late they would be ignored without a word, and the
# bitwise tests would fail on some shapes and pass on others.
if "torch" in sys.modules and any(os.environ.get(k) != v for k, v in NUMERICS_ENV.items()):
    raise RuntimeError(f"torch was imported before tests/conftest.py could set {NUMERICS_ENV}")
os.environ.update(NUMERICS_ENV)
