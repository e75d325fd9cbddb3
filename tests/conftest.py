"""The environment that bitwise equality needs, set before anything imports torch or NumPy."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from numerics import NUMERICS_ENV

gc.disable()  # while the test files import torch and pandas

# Both read these once, when they are loaded: set too late they would be ignored without a word, and the bitwise tests
# would fail on some shapes and pass on others.
if {"torch", "numpy"} & sys.modules.keys() and any(os.environ.get(k) != v for k, v in NUMERICS_ENV.items()):
    raise RuntimeError(f"torch or NumPy was imported before tests/conftest.py could set {NUMERICS_ENV}")
for name, value in NUMERICS_ENV.items():
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value

# In memory an fsync takes 0.015 ms, on a disk 6 ms. tests/faults/test_kill_points.py has the test that uses a disk.
MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK):
    # Inherited by the processes of pytest-xdist and by every command under test; removed when the session ends.
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="normstudy-tests-", dir=MEMORY)
    atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)

# A shell has what it starts in the background ignore Ctrl-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from studies import draw_no_figures  # it imports NumPy

    draw_no_figures(monkeypatch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first: as the last ones they would leave the other processes without work."""
    longest = ["test_random_kills.py", "test_kill_points.py"]
    items.sort(key=lambda item: item.path.name not in longest)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what the imports left: torch's and pandas' objects cost it a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.enable()
