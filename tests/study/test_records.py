"""The commit that a run records, of the whole package; the records of sweeps, and the logs of crashes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import normstudy
from normstudy import config
from normstudy.errors import Damaged
from normstudy.study import records

PACKAGE = Path(normstudy.__file__).parent
ROOMS = sorted(path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("__init__.py"))


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of a copy of the package, whose records.py answers for its own folder."""
    shutil.copytree(PACKAGE, tmp_path / "normstudy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "README.md").write_text("before")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "normstudy" / Path(records.__file__).relative_to(PACKAGE)))
    return tmp_path


def test_a_change_in_any_room_makes_the_commit_dirty(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "README.md").write_text("after")  # beside the package
    assert records.git_commit() == commit
    assert len(ROOMS) > 10
    for room in ROOMS:
        path = checkout / "normstudy" / room / "__init__.py"
        content = path.read_text()
        path.write_text(content + "# changed\n")
        assert records.git_commit() == f"{commit}-dirty", room
        path.write_text(content)
        assert records.git_commit() == commit
        new = path.with_name("new.py")
        new.write_text("")
        assert records.git_commit() == f"{commit}-dirty", room
        new.unlink()


def test_an_untracked_package_has_no_commit(checkout: Path) -> None:
    git(checkout, "rm", "-rq", "--cached", "normstudy")
    assert records.git_commit() is None


def test_copies_of_logs_are_no_crashes(tmp_path: Path) -> None:
    (tmp_path / records.LOGS).mkdir(parents=True)
    for name in ("a-b-1", "a-b-2", "a-b-1 (1)", "a-b-2 copy", "notes"):
        (tmp_path / records.LOGS / f"{name}.txt").touch()
    assert records.tries_of(tmp_path) == {"a-b": 2}


def test_no_flipped_bit_of_a_record_is_read_as_other_runs(tmp_path: Path) -> None:
    runs = {f"run-{n}": config.RunConfig() for n in range(3)}
    records.record_request(tmp_path, {"command": "sweep"}, [["run-1"]], runs)
    (path,) = records.paths_of(tmp_path)
    record, lengths = records.read_record(path)
    assert (record.command, record.trains, lengths) == ("sweep", {"run-1"}, dict.fromkeys(runs, 600))
    data = path.read_bytes()
    command = data.index(b"sweep", data.index(b"command"))
    for place in (command, *range(data.index(b"run-0"), data.index(b"run-0") + 20)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 128]) + data[place + 1 :])
        with pytest.raises(Damaged, match="run normstudy check"):
            records.read_record(path)
