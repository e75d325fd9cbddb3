"""A kill at every named point, and the two mistakes that such kills must find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")
SHARDS = 2

pytestmark = pytest.mark.faults


def harness(folder: Path, *words: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, HARNESS, folder, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_kill_at_any_point_costs_nothing(tmp_path: Path, shard: int) -> None:
    told = harness(tmp_path, "--every", str(SHARDS), "--offset", str(shard))
    assert told["failures"] == []
    assert isinstance(told["trials"], int)
    assert told["trials"] > 40


@pytest.mark.parametrize(
    ("mutation", "found"), [("straight_into_tables", "not a parquet file"), ("checkpoint_before_window", " lacks ")]
)
def test_a_store_with_a_known_mistake_fails(tmp_path: Path, mutation: str, found: str) -> None:
    told = harness(tmp_path, "--mutation", mutation, "--every", "7")
    failures = told["failures"]
    assert isinstance(failures, list)
    assert any(found in text for text in failures), failures
