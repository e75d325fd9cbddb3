"""What the disturbed sweeps of this folder are held against."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from processes import finish


@pytest.fixture(scope="module")
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """The study that the module's WORDS make when nothing happens. All processes of a test session share it."""
    shared = tmp_path_factory.getbasetemp().parent / f"undisturbed-{testrun_uid}-{request.module.__name__}"
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "trained").exists():
            done = finish(request.module.WORDS, shared)
            assert done.returncode == 0, done.stderr
            (shared / "trained").touch()
    return shared / "results" / "long"
