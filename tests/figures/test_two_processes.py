"""`plot` of a large study by two processes: the same files as by one, whatever becomes of the second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from processes import finish, is_gone, start, workers_of

from normstudy import drawing
from normstudy.errors import ConfigError
from normstudy.figures import FIGURES

STUDY = Path(__file__).parents[2] / "results" / "rmsnorm"
FEW = ["headline", "heatmap", "final_grid"]
needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
# A process that may use one core draws alone.
ALONE = (
    "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from normstudy import cli, drawing\n"
    "drawing.Helper = None; sys.exit(cli.main(sys.argv[1:]))"
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_figure_has_its_place_in_the_order() -> None:
    assert sorted(drawing.ORDER) == sorted(FIGURES)
    assert drawing._size(STUDY) > drawing.FEW_BYTES


@needs_two_cores
def test_two_processes_say_and_write_what_one_does(tmp_path: Path) -> None:
    words = ["plot", str(STUDY), "--out", "figures"]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = subprocess.run(
        [sys.executable, "-c", ALONE, *words], cwd=tmp_path / "one", check=True, capture_output=True, text=True
    )
    two = finish(words, tmp_path / "two")
    assert (two.returncode, two.stdout, two.stderr) == (0, one.stdout, "")
    assert files(tmp_path / "two" / "figures") == files(tmp_path / "one" / "figures")


def takes_one_and_is_killed(pipe: Connection, left: Connection, *rest: object) -> None:
    os.read(left.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)


@needs_two_cores
def test_what_a_killed_process_had_begun_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawing.plot(STUDY, out=tmp_path / "whole", only=FEW)
    monkeypatch.setattr(drawing, "_help", takes_one_and_is_killed)
    result = drawing.plot(STUDY, out=tmp_path / "rest", only=FEW)
    assert [path.stem for path in result.paths] == [path.stem for path in whole.paths] == FEW
    assert files(tmp_path / "rest") == files(tmp_path / "whole")


@needs_two_cores
@pytest.mark.parametrize("name", ["final_grid", "heatmap"])  # the first of the one process and of the other
def test_an_error_of_either_process_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.png").mkdir()
    with pytest.raises(ConfigError, match=rf"{name}\.png cannot be written"):
        drawing.plot(STUDY, out=tmp_path, only=FEW)


@needs_two_cores
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, which both get, and a kill -9, which the second one finds out at its next figure."""
    running = start(["plot", str(STUDY), "--out", str(tmp_path)], tmp_path)
    while not list(tmp_path.iterdir()):
        assert running.poll() is None
        time.sleep(0.02)
    (helper,) = workers_of(running.pid)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)
    else:
        running.kill()
    drawn = len(list(tmp_path.iterdir()))
    out, err = running.communicate(timeout=60)
    assert running.returncode in (-number, 128 + number)
    assert (out, "Traceback" in err) == ("", False)
    end = time.monotonic() + 60
    while not is_gone(helper):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) <= drawn + 1  # the one that it was at
