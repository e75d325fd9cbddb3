"""What the disturbed sweeps of this folder are held against."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from processes import AT_ONCE, finish


@pytest.fixture(scope="module")
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """The study that the module's WORDS make when nothing happens. All processes of a test session share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    shared = base / f"undisturbed-{testrun_uid}-{request.module.__name__}"
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "trained").exists():
            shutil.rmtree(shared / "results", ignore_errors=True)  # of a process that failed
            done = finish([*request.module.WORDS, *AT_ONCE], shared)
            assert done.returncode == 0, done.stderr
            (shared / "trained").touch()
    return shared / "results" / "long"
