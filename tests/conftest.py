"""The environment that bitwise equality needs, set before anything imports torch or NumPy."""

from __future__ import annotations

import os
import signal
import sys

from numerics import NUMERICS_ENV

# Both read these once, when they are loaded: set too late they would be ignored without a word, and the bitwise tests
# would fail on some shapes and pass on others.
if {"torch", "numpy"} & sys.modules.keys() and any(os.environ.get(k) != v for k, v in NUMERICS_ENV.items()):
    raise RuntimeError(f"torch or NumPy was imported before tests/conftest.py could set {NUMERICS_ENV}")
for name, value in NUMERICS_ENV.items():
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value

# A shell has what it starts in the background ignore Ctrl-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
