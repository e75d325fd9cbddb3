"""`plot` of a large study by two processes writes the same files as one process, even when the second is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from processes import finish, is_gone, start, wait_for, workers_of

from normstudy.errors import ConfigError
from normstudy.figures import draw, together
from normstudy.figures.draw import FIGURES, PlotResult

STUDY = Path(__file__).parents[2] / "results" / "rmsnorm"
FEW = ["headline", "heatmap", "final_grid"]
needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
# A process that may use one core draws alone.
ALONE = (
    "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    "from normstudy.cli import main as cli; from normstudy.figures import together\n"
    "together.Child = None; sys.exit(cli.main(sys.argv[1:]))"
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_figure_has_its_place_in_the_order() -> None:
    assert sorted(together.ORDER) == sorted(FIGURES)
    assert together._is_large(STUDY)
    assert not together._is_large(STUDY / "tables" / "runs")


@pytest.mark.processes
@needs_two_cores
def test_two_processes_say_and_write_what_one_does(tmp_path: Path) -> None:
    words = ["plot", str(STUDY), "--out", "figures", "--only", ",".join([*FEW, "ranking"])]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = subprocess.run(
        [sys.executable, "-c", ALONE, *words], cwd=tmp_path / "one", check=True, capture_output=True, text=True
    )
    two = finish(words, tmp_path / "two")
    assert (two.returncode, two.stdout, two.stderr) == (0, one.stdout, "")
    assert files(tmp_path / "two" / "figures") == files(tmp_path / "one" / "figures")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What this process draws, call by call."""
    calls: list[list[str]] = []
    plot_study = draw.plot_study

    def recorded(*args: Any, **options: Any) -> PlotResult:
        calls.append(options["only"])
        return plot_study(*args, **options)

    monkeypatch.setattr(draw, "plot_study", recorded)
    return calls


@needs_two_cores
def test_each_process_draws_its_half(tmp_path: Path, drawn: list[list[str]]) -> None:
    result = together.plot(STUDY, out=tmp_path, only=FEW)
    assert [path.stem for path in result.paths] == FEW
    assert drawn == [["final_grid", "headline"]]
    assert sorted(files(tmp_path)) == sorted(f"{name}.png" for name in FEW)


def is_killed(pipe: Connection, *rest: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@needs_two_cores
def test_the_half_of_a_killed_process_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[list[str]]
) -> None:
    monkeypatch.setattr(together, "_draw", is_killed)
    result = together.plot(STUDY, out=tmp_path, only=FEW)
    assert [path.stem for path in result.paths] == FEW
    assert drawn == [["final_grid", "headline"], ["heatmap"]]


@needs_two_cores
def test_an_error_of_the_second_process_is_reported(tmp_path: Path) -> None:
    (tmp_path / "heatmap.png").mkdir()
    with pytest.raises(ConfigError, match=r"heatmap\.png cannot be written"):
        together.plot(STUDY, out=tmp_path, only=FEW)


@needs_two_cores
def test_without_room_for_a_second_process_one_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[list[str]]
) -> None:
    def full(*args: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    assert [path.stem for path in together.plot(STUDY, out=tmp_path, only=FEW).paths] == FEW
    assert drawn == [["final_grid", "headline", "heatmap"]]


def plotting(folder: Path, study: str, after: float | None, *words: str) -> tuple[subprocess.Popen[str], int]:
    """A running command and its second process, `after` seconds from that one's start.

    after None: once the first process has drawn a figure.
    """
    running = start(["plot", str(STUDY.parent / study), "--out", "figures", *words], folder)
    wait_for(lambda: workers_of(running.pid))
    (helper,) = workers_of(running.pid)
    wait_for(lambda: after is not None or drawn_by_the_first(folder))
    time.sleep(after or 0)
    return running, helper


def drawn_by_the_first(folder: Path) -> list[Path]:
    """Its figures, of the first half of ORDER. The second process may draw while the first still imports."""
    return [path for name in ("training_loss", "final_grid") for path in folder.glob(f"*/{name}.*")]


MOMENTS = pytest.mark.parametrize("after", [0.0, None])


@pytest.mark.faults
@needs_two_cores
@MOMENTS
def test_the_second_process_leaves_a_ctrl_c_to_the_first(tmp_path: Path, after: float | None) -> None:
    """Ctrl-C reaches both processes, and only the first reacts."""
    names = [*FEW, "gradient_ratio"]  # two for each process
    running, helper = plotting(tmp_path, "rmsnorm", after, "--only", ",".join(names))
    os.kill(helper, signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (0, "")
    assert len(out.splitlines()) == len(names)


@pytest.mark.faults
@needs_two_cores
def test_ctrl_c_ends_both(tmp_path: Path) -> None:
    running, helper = plotting(tmp_path, "placements", None)
    said = None
    while said is None:
        os.killpg(running.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):  # Python loses a Ctrl-C that comes within a destructor
            said = running.communicate(timeout=4)
    assert running.returncode == 130
    assert "Traceback" not in said[1]
    assert is_gone(helper)


@pytest.mark.faults
@needs_two_cores
@MOMENTS
def test_the_second_process_ends_when_the_first_is_killed(tmp_path: Path, after: float | None) -> None:
    running, helper = plotting(tmp_path, "placements", after)
    drawn = len(list(tmp_path.glob("*/*")))
    running.kill()
    running.communicate(timeout=60)  # until the last process that has its pipes has ended
    wait_for(lambda: is_gone(helper), 5)
    assert len(list(tmp_path.glob("*/*"))) <= drawn + 1
