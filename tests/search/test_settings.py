"""The settings of a search, as they are kept with a study: read again, or refused in one line."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from normstudy.errors import ConfigError, Damaged
from normstudy.search.settings import FILE, VERSION, Settings, keep, read

SHARED = {"data_seed": None, "probe.dense_steps": 1, "probe.every": 2, "eval.every": 3, "eval.windows": 4}
KEPT = Settings("warmup_steps", 0, 30, width=0.3, max_runs=20, seed=5, alike=SHARED)


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    keep(tmp_path, KEPT)
    assert read(tmp_path) == KEPT
    older = {key: value for key, value in KEPT._asdict().items() if key != "alike"}
    (tmp_path / FILE).write_text(json.dumps(older))
    assert read(tmp_path) == KEPT._replace(alike=None)


def test_a_changed_character_is_no_other_search(tmp_path: Path) -> None:
    keep(tmp_path, KEPT)
    text = (tmp_path / FILE).read_bytes()
    for i in range(len(text)):
        (tmp_path / FILE).write_bytes(text[:i] + bytes([text[i] ^ 1]) + text[i + 1 :])
        with contextlib.suppress(Damaged):
            assert read(tmp_path) == KEPT, i


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), "x", None, [1], -(10**400)], ids=lambda value: str(value)[:9]
)
@pytest.mark.parametrize("key", ["of", "low", "high", "max_runs", "seed", "alike"])
def test_damaged_values_are_refused(key: str, value: object, tmp_path: Path) -> None:
    if (key, value) == ("alike", None) or (key == "seed" and isinstance(value, int)):
        return  # a legal value
    keep(tmp_path, KEPT)
    (tmp_path / FILE).write_text(json.dumps(KEPT._asdict() | {key: value}))
    with pytest.raises(Damaged, match="does not hold the settings of a search: restore it from a copy, or remove"):
        read(tmp_path)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b"{}", b'{"low": 1e999}'], ids=str)
def test_damaged_bytes_are_refused(text: bytes, tmp_path: Path) -> None:
    keep(tmp_path, KEPT)
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(Damaged, match="restore it from a copy"):
        read(tmp_path)


@pytest.mark.parametrize(
    "shared", [SHARED | {"eval.foo": 1}, SHARED | {"eval.every": [1]}, {"data_seed": None}, [["eval.every", 1]]]
)
def test_other_shared_keys_are_refused(shared: object, tmp_path: Path) -> None:
    keep(tmp_path, KEPT)
    (tmp_path / FILE).write_text(json.dumps(KEPT._asdict() | {"alike": shared}))
    with pytest.raises(Damaged, match="restore it from a copy"):
        read(tmp_path)


def test_a_dotted_key_is_its_column_and_another_version_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, KEPT)
    (tmp_path / FILE).write_text(json.dumps(KEPT._asdict() | {"of": "schedule.warmup_steps"}))
    assert read(tmp_path) == KEPT
    (tmp_path / FILE).write_text(json.dumps(KEPT._asdict() | {"version": VERSION + 1}))
    with pytest.raises(ConfigError, match=f"version {VERSION + 1}, but this normstudy reads {VERSION}: update"):
        read(tmp_path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(make: object, tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir()
    make(tmp_path / FILE)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"cannot be read \(.+\): make it a readable file"):
        read(tmp_path)
