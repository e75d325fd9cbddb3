"""The settings of a search, as they are kept with a study: read again, or refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from normstudy.errors import Damaged
from normstudy.search.settings import FILE, Settings, keep, read

KEPT = Settings("warmup_steps", 0, 30, width=0.3, max_runs=20, seed=5, alike={"data_seed": None, "eval.windows": 4})


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    keep(tmp_path, KEPT)
    assert read(tmp_path) == KEPT
    older = {key: value for key, value in KEPT._asdict().items() if key != "alike"}
    (tmp_path / FILE).write_text(json.dumps(older))
    assert read(tmp_path) == KEPT._replace(alike=None)


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), "x", None, [1], -(10**400)], ids=lambda value: str(value)[:9]
)
@pytest.mark.parametrize("key", ["of", "low", "high", "max_runs", "seed", "alike"])
def test_damaged_values_are_refused(key: str, value: object, tmp_path: Path) -> None:
    if (key, value) == ("alike", None) or (key == "seed" and isinstance(value, int)):
        return  # a legal value
    keep(tmp_path, KEPT)
    (tmp_path / FILE).write_text(json.dumps(KEPT._asdict() | {key: value}))
    with pytest.raises(Damaged, match="cannot be read as the settings of a search: restore it from a copy, or remove"):
        read(tmp_path)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b"{}", b'{"low": 1e999}'], ids=str)
def test_damaged_bytes_are_refused(text: bytes, tmp_path: Path) -> None:
    keep(tmp_path, KEPT)
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(Damaged, match="restore it from a copy"):
        read(tmp_path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(make: object, tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir()
    make(tmp_path / FILE)  # type: ignore[operator]
    with pytest.raises(Damaged, match="restore it from a copy"):
        read(tmp_path)
