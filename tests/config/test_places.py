"""Paths that a user names, and the one way in which their files are opened."""

from __future__ import annotations

import os
import re
from pathlib import Path

import handmade
import pytest

from normstudy.cli import main as cli
from normstudy.config import places
from normstudy.errors import ConfigError


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    """A pipe, a device or a file of the kernel could keep its reader waiting."""
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "kernel").symlink_to("/proc/kmsg")
    assert places.read(tmp_path / "file") == places.read(tmp_path / "link") == b"text"
    assert places.read(tmp_path / "empty") == b""
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "kernel", Path("/dev/zero"), Path("/proc/self/mem")):
        with pytest.raises(OSError, match="it is a folder, a pipe, a device or a file of the kernel") as error:
            places.read(path)
        assert error.value.filename == str(path)
    with open(tmp_path / "file", opener=places.own_opener) as file:
        assert file.read() == "text"
    with pytest.raises(OSError, match="symbolic link"):
        places.own_opener(str(tmp_path / "link"), os.O_RDONLY)


@pytest.mark.parametrize(
    "name",
    ["tables/runs/R.parquet", "tables/steps/R-0.parquet", "tables/modules/0-schema.parquet",
     "sweeps/20250101T000000.000000.parquet", "state/checkpoints/R", "state/lock", "SEALED"],
)  # fmt: skip
@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "/proc/kmsg"])
def test_no_file_of_a_study_keeps_a_command_waiting(
    name: str, what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_id = handmade.write_handmade_run(tmp_path / "s", handmade.handmade_config(tmp_path))
    path = tmp_path / "s" / name.replace("R", run_id if "tables" in name or "checkpoints" in name else "R")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(what)
    for command in ("status", "check"):
        code = cli.main([command, str(tmp_path / "s")])
        out, err = capfd.readouterr()
        assert code in (0, 1, 2)
        assert code != 2 or (err.count("\n") == 1 and not out)


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.expanded("~/a", "--out") == f"{tmp_path}/a"
    assert places.expanded("a/~", "--out") == "a/~"
    assert places.expanded("./~x", "--out") == "./~x"
    with pytest.raises(ConfigError, match=re.escape("--out '~no-such-user/a': no home folder is known for ~no-such-")):
        places.expanded("~no-such-user/a", "--out")
