"""A kill at every eighth point, and the two mistakes that such kills must find; `slow` kills at all points."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")
SHARDS = 16


def harness(folder: Path, *words: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, HARNESS, folder, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.faults
@pytest.mark.parametrize(
    ("shard", "mutation", "found"),
    [(0, "straight_into_tables", "not a parquet file"), (8, "checkpoint_before_window", " lacks ")],
)
def test_a_kill_costs_nothing_and_a_known_mistake_is_found(
    tmp_path: Path, shard: int, mutation: str, found: str
) -> None:
    told = harness(tmp_path, "--every", str(SHARDS), "--offset", str(shard), "--mutation", mutation)
    assert told["failures"] == []
    assert isinstance(told["trials"], int)
    assert told["trials"] > 5
    assert isinstance(told["mistaken"], list)
    assert any(found in text for text in told["mistaken"]), told["mistaken"]


@pytest.mark.slow
@pytest.mark.parametrize("shard", [one for one in range(SHARDS) if one not in (0, 8)])
def test_a_kill_at_the_other_points_costs_nothing(tmp_path: Path, shard: int) -> None:
    assert harness(tmp_path, "--every", str(SHARDS), "--offset", str(shard))["failures"] == []
