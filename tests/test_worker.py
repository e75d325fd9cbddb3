"""What a worker does around the training: runs that end at one step are written together, and one batch that is too
large for the memory becomes two."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import assert_same_tables, tiny

from normstudy.config import RunConfig
from normstudy.train import End, Record
from normstudy.worker import is_out_of_memory, together


def record(step: int) -> Record:
    one = np.ones(1)
    return Record(step, [0], one, None, [1e-3], one, one, one, None)


def test_ends_of_one_step_come_together_and_nothing_changes_its_place() -> None:
    a, b, c = record(0), record(1), record(2)
    ends = [End(run, 1.0, None) for run in range(4)]
    assert list(together(iter([a, ends[0], b, c, *ends[1:]]))) == [a, [ends[0]], b, c, ends[1:]]
    assert list(together(iter([a, *ends[:2], b]))) == [a, ends[:2], b]
    assert list(together(iter([]))) == []


def test_a_crash_takes_nothing_from_the_runs_that_ended_before() -> None:
    a, end = record(0), End(0, None, 0)

    def crashes() -> Iterator[Record | End]:
        yield a
        yield end
        raise ValueError("out of memory")

    seen: list[object] = []
    later = ValueError("while capturing")
    later.__cause__ = plain.value
    assert is_out_of_memory(later)
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)
