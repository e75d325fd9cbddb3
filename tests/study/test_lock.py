"""The study's lock has one holder, names the holder to others, and is free once the holder and its children end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from normstudy.config import ConfigError
from normstudy.study import locks

HOLDER = """
import sys, time
from pathlib import Path
from normstudy.study import locks
with locks.hold_study(Path(sys.argv[1]), "normstudy sweep experiment=depth"):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(study: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(study)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_second_command_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        with pytest.raises(ConfigError) as e, locks.hold_study(tmp_path, "normstudy compact"):
            pass
    finally:
        end(holder)
    for word in ("in use", "normstudy sweep experiment=depth", f"pid {holder.pid}", "since 20", "on "):
        assert word in str(e.value)
    assert "\n" not in str(e.value)


def test_a_dead_holder_frees_it_at_once(tmp_path: Path) -> None:
    end(start_holder(tmp_path))
    with locks.hold_study(tmp_path, "normstudy compact"):
        pass


def test_it_is_free_after_use_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locks.hold_study(tmp_path, "one"):
        raise RuntimeError
    with locks.hold_study(tmp_path, "two"):
        assert (tmp_path / locks.LOCK).exists()


def test_a_process_that_inherits_the_descriptor_holds_it_too(tmp_path: Path) -> None:
    with locks.hold_study(tmp_path, "normstudy sweep") as fd:
        worker = subprocess.Popen(["sleep", "60"], pass_fds=[fd], text=True)
    try:
        with pytest.raises(ConfigError, match="normstudy sweep"), locks.hold_study(tmp_path, "again"):
            pass
    finally:
        end(worker)
    with locks.hold_study(tmp_path, "again"):
        pass


def test_a_process_that_does_not_inherit_it_does_not(tmp_path: Path) -> None:
    with locks.hold_study(tmp_path, "normstudy sweep"):
        other = subprocess.Popen(["sleep", "60"], close_fds=False, text=True)
    try:
        with locks.hold_study(tmp_path, "again"):
            pass
    finally:
        end(other)


def test_a_shorter_command_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    for command in ("a long command " * 20, "tiny"):
        with (
            locks.hold_study(tmp_path, command),
            pytest.raises(ConfigError, match=command),
            locks.hold_study(tmp_path, "x"),
        ):
            pass


def test_shared_holders_let_one_another_in_and_nobody_else(tmp_path: Path) -> None:
    with locks.hold_study(tmp_path, "normstudy run", shared=True):
        with locks.hold_study(tmp_path, "another run", shared=True):
            pass
        with pytest.raises(ConfigError, match="run"), locks.hold_study(tmp_path, "normstudy compact"):
            pass
    with (
        locks.hold_study(tmp_path, "normstudy compact"),
        pytest.raises(ConfigError, match="normstudy compact"),
        locks.hold_study(tmp_path, "normstudy run", shared=True),
    ):
        pass


def test_a_lock_without_text_is_still_a_lock(tmp_path: Path) -> None:
    with locks.hold_study(tmp_path, "one") as fd:
        os.ftruncate(fd, 0)
        with pytest.raises(ConfigError, match="another command"), locks.hold_study(tmp_path, "two"):
            pass


SEALER = """
import os, sys
from pathlib import Path
from normstudy.study import locks
from normstudy.config import ConfigError
study, alone = Path(sys.argv[1]), Path(sys.argv[1]) / "alone"
for _ in range(500):
    try:
        with locks.hold_study(study, "normstudy compact --seal"):
            os.close(os.open(alone, os.O_CREAT | os.O_EXCL))  # fails if another process is inside
            alone.unlink()
            (study / locks.LOCK).unlink()
    except ConfigError as e:
        assert "in use" in str(e), e
"""


def test_two_never_hold_it_while_seals_remove_the_file(tmp_path: Path) -> None:
    sealers = [
        subprocess.Popen([sys.executable, "-c", SEALER, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [p.communicate()[1] for p in sealers]
    assert [p.returncode for p in sealers] == [0, 0], told


def test_a_lock_file_that_was_removed_guards_nothing(tmp_path: Path) -> None:
    with locks.hold_study(tmp_path, "seal"):
        (tmp_path / locks.LOCK).unlink()
        with (
            locks.hold_study(tmp_path, "two"),
            pytest.raises(ConfigError, match="two"),
            locks.hold_study(tmp_path, "three"),
        ):
            pass


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), locks.hold_study(tmp_path / "study", "one"):
        pass
