"""The command: which rows are measured, what an interrupted one leaves, what is shown, and bad requests in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import measured
import pytest
from measured import MACHINE, by_hand, content, write
from processes import on_terminal

from normstudy.bench import rows, run, tables
from normstudy.bench.rows import ROWS, Row, Sample, Scope
from normstudy.cli import main, manual

pytestmark = pytest.mark.bench

Capture = pytest.CaptureFixture[str]
HERE = Path(__file__).parents[1]  # where measured.py is


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Row a is the tests' own, and the current folder is empty."""
    monkeypatch.setitem(ROWS, "a", measured.ROW)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def row_c(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A module registered as row c, whose `measure` a test may replace."""

    def measure(scope: Scope) -> Iterator[Sample]:
        yield Sample("c", "", "reversed", "seconds", "s", 0, 1.0)

    module = types.SimpleNamespace(GOALS=[replace(measured.GOALS[3], row="c", case="")], measure=measure)
    monkeypatch.setitem(sys.modules, "handmade_row_c", module)  # type: ignore[arg-type]
    monkeypatch.setitem(ROWS, "c", Row("handmade_row_c", "measure", "by hand"))
    return module


def ask(capfd: Capture, *words: str) -> tuple[str, str]:
    """Standard output and error of a command that must succeed."""
    capfd.readouterr()
    assert main.main(["bench", *words]) == 0
    out, err = capfd.readouterr()
    return out, err


# ---- measuring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "folder", "mode"),
    [
        ([], "results/bench/quick", "quick"),
        (["--full"], "results/bench", "full"),
        (["--quick", "--out", "own/folder"], "own/folder", "quick"),
    ],
)
def test_where_it_goes_and_how_much_is_measured(words: list[str], folder: str, mode: str, capfd: Capture) -> None:
    out, err = ask(capfd, "--rows", "a", *words)
    assert sorted(content(Path())) == [f"{folder}/a.parquet", f"{folder}/bench.png"]
    stored = tables.read(Path(folder), ["a"])
    assert set(stored["mode"]) == {mode}
    assert stored["round"].max() + 1 == measured.ROUNDS[mode]
    assert out.startswith("row  case   what")
    assert f"Row a: --{mode} on {stored['cpu'][0]}" in out
    assert out.endswith(f"Tables and figure: {folder}\n")
    assert re.fullmatch(r"row a, sorting: \d+ numbers in \d+ s\n", err)  # and no bar: this is no terminal


def test_only_the_rows_that_were_asked_for_are_measured_and_shown(row_c: types.SimpleNamespace, capfd: Capture) -> None:
    out, err = ask(capfd, "--rows", "c,a,c", "--out", "x")
    assert [line.split(",")[0] for line in err.splitlines()] == ["row a", "row c"]
    assert [line[0] for line in out.splitlines() if line[:3].strip() in ROWS] == ["a", "c"]
    before = content(Path("x"))
    out, _ = ask(capfd, "--rows", "c", "--out", "x")
    after = content(Path("x"))
    assert sorted(after) == ["a.parquet", "bench.png", "c.parquet"]
    assert before["a.parquet"] == after["a.parquet"]
    assert before["c.parquet"] != after["c.parquet"]  # its time is another
    assert "Row c:" in out
    assert "Row a:" not in out


def test_a_row_has_an_empty_folder_that_is_gone_afterwards(row_c: types.SimpleNamespace, capfd: Capture) -> None:
    seen: list[Scope] = []

    def measure(scope: Scope) -> Iterator[Sample]:
        assert list(scope.folder.iterdir()) == []
        (scope.folder / "big").write_bytes(b"x")
        seen.append(scope)
        yield Sample("c", "", "reversed", "seconds", "s", 0, 1.0)

    row_c.measure = measure
    ask(capfd, "--rows", "c", "--full", "--out", "x")
    assert [(s.quick, s.folder.exists()) for s in seen] == [(False, False)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_row_writes_nothing_and_finished_ones_stay(
    error: BaseException | type[BaseException], row_c: types.SimpleNamespace, capfd: Capture
) -> None:
    ask(capfd, "--rows", "c", "--out", "x")
    before = content(Path("x"))
    folders: list[Path] = []

    def measure(scope: Scope) -> Iterator[Sample]:
        folders.append(scope.folder)
        yield Sample("c", "", "reversed", "seconds", "s", 0, 2.0)
        raise error

    row_c.measure = measure
    assert main.main(["bench", "--rows", "a,c", "--out", "x"]) == (130 if error is KeyboardInterrupt else 2)
    after = content(Path("x"))
    assert sorted(after) == ["a.parquet", "bench.png", "c.parquet"]
    assert after["c.parquet"] == before["c.parquet"]
    assert not folders[0].exists()
    out, _ = ask(capfd, "--show", "--out", "x")  # what there is can be shown, the new row a with the old c
    assert "Rows a, c: --quick" in out
    assert content(Path("x"))["bench.png"] != before["bench.png"]


def test_a_terminated_command_leaves_no_folder_behind() -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(HERE)!r}); import measured; from normstudy.cli import main as cli\n"
        "from normstudy.bench.rows import ROWS; ROWS['a'] = measured.ROW\n"
        "def measure(scope):\n"
        "    (scope.folder / 'big').write_text('x'); print('measuring', flush=True); time.sleep(60); yield\n"
        "measured.measure = measure; sys.exit(cli.main(['bench', '--rows', 'a', '--out', 'x']))"
    )
    Path("temp").mkdir()
    environment = {**os.environ, "TMPDIR": str(Path("temp").absolute())}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"measuring\n"
        assert [p.name for p in Path("temp").rglob("*") if p.is_file()] == ["big"]
        running.terminate()
    assert running.returncode == 130
    assert list(Path("temp").iterdir()) == []
    assert content(Path()) == {}


def test_the_row_of_a_gpu_is_skipped_without_one(row_c: types.SimpleNamespace, capfd: Capture) -> None:
    line = "row g skipped: add --device cuda to measure it\n"
    assert ask(capfd, "--rows", "g", "--out", "x") == ("", line)
    assert content(Path()) == {}
    _, err = ask(capfd, "--rows", "g,c", "--out", "x")
    assert err.startswith(line)
    assert sorted(content(Path("x"))) == ["bench.png", "c.parquet"]


# ---- on a terminal ------------------------------------------------------------------------------------


def test_a_terminal_sees_a_bar_with_the_row_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_terminal(30, 110) as read, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", read.stream)
        assert main.main(["bench", "--rows", "a", "--out", "x"]) == 0
    assert re.search(r" 0%\|.*\| 0/1 .*row a", read.seen)
    assert re.search(r"100%\|.*\| 1/1 .*row a, 10000, round 1", read.seen)
    assert "numbers in" not in read.seen  # the line of a pipe


# ---- showing ------------------------------------------------------------------------------------------


@pytest.fixture
def shown(row_c: types.SimpleNamespace) -> Path:
    """Two rows in results/bench, made by hand; showing them must measure nothing."""

    def measure(scope: Scope) -> Iterator[Sample]:
        raise AssertionError("it measured")
        yield

    row_c.measure = measure
    folder = Path("results/bench")
    write(folder, by_hand({"sorted": [0.5], "reversed": [2.0]}))
    write(folder, by_hand({"reversed": [1.0]}, row="c", case=""), MACHINE | {"python": "3.12.1"})
    return folder


def test_show_renders_what_is_stored(shown: Path, capfd: Capture) -> None:
    before = content(shown)
    out, err = ask(capfd, "--show")
    assert err == ""
    assert [line[0] for line in out.splitlines() if line[:3].strip() in ROWS] == ["a", "c"]
    after = content(shown)
    picture = after.pop("bench.png")
    assert after == before
    assert ask(capfd, "--show", "--full", "--format", "markdown")[0].startswith("| row | case | what |")
    assert content(shown)["bench.png"] == picture
    out, _ = ask(capfd, "--show", "--rows", "c")
    assert "Row c: --full" in out
    assert "Row a" not in out
    assert content(shown)["bench.png"] == picture  # of all that is stored


def test_asking_for_the_machine_and_show_take_no_torch(shown: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from normstudy.bench import run, tables; tables.machine('cpu'); assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None; import measured; from normstudy.cli import main as cli\n"
        "from normstudy.bench.rows import ROWS; ROWS['a'] = measured.ROW\n"
        "sys.exit(cli.main(['bench', '--show', '--rows', 'a']))"
    )
    (shown / "c.parquet").unlink()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "time to sort" in done.stdout


def test_show_of_a_damaged_table_is_one_line(shown: Path, capfd: Capture) -> None:
    (shown / "a.parquet").write_bytes(b"half a fi")
    assert main.main(["bench", "--show"]) == 2
    assert re.fullmatch(r"error: results/bench/a\.parquet cannot be read: [^\n]* a again\n", capfd.readouterr().err)


@pytest.mark.parametrize(
    ("request_", "held"),
    [
        ("--quick --full", ["--full", "not allowed with", "--quick", "--help"]),
        ("--rows z", ["'z'", "a, b, c, d, e, f, g, i, j"]),
        ("--rows a1", ["'a1'", "a, b, c"]),
        ("--rows a,,b", ["'a,,b'", "empty name"]),
        ("--rows", ["--rows", "--help"]),
        ("--device gpu", ["'gpu'", "cpu", "cuda"]),
        ("--format csv", ["'csv'", "markdown"]),
        ("--out file", ["--out file", "is a file"]),
        ("--out file/below", ["is a file"]),
        ("--rows a --rounds 3", ["unrecognized arguments: --rounds 3", "--help"]),
        ("a", ["unrecognized arguments: a"]),
        ("--show", ["results/bench contains no benchmark results", "normstudy bench", "--out"]),
        ("--show --quick", ["results/bench/quick contains no benchmark results"]),
        ("--show --out nowhere", ["nowhere contains no benchmark results"]),
        ("--show --device cpu", ["measures nothing", "--device cpu"]),
        ("--show --out one --rows a,c", ["one contains no row c, only a: measure row c first"]),
        ("--show --out one --rows z", ["'z'"]),
    ],
)
def test_bad_requests(request_: str, held: list[str], capfd: Capture) -> None:
    Path("file").write_text("")
    if "one" in request_.split():
        write(Path("one"), by_hand({"sorted": [0.5]}))
    before = content(Path())
    assert main.main(["bench", *request_.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [words for words in held if words not in err] == []
    assert content(Path()) == before


def test_cuda_where_there_is_none_is_one_line_and_writes_nothing() -> None:
    words = [Path(sys.executable).with_name("normstudy"), "bench", "--device", "cuda", "--rows", "g"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=hidden, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --device cuda: torch finds no GPU here, use --device cpu\n"
    assert content(Path()) == {}


# ---- the registry and the help ------------------------------------------------------------------------


def test_the_help_tells_every_row_and_where_things_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert list(ROWS) == list("abcdefgijkl")
    shown = manual.help_of("bench")
    for letter, row in ROWS.items():
        assert f"  {letter}  {row.title}" in shown
        assert row.module.startswith("normstudy.bench.")
    assert [letter for letter, row in ROWS.items() if row.device == "cuda"] == ["g"]
    assert {row.device for row in ROWS.values()} == {"cpu", "cuda"}
    for folder in run.OUT.values():
        assert str(folder) in shown


def test_a_row_without_its_library_is_skipped(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setitem(ROWS, "k", ROWS["k"]._replace(library="no_such_library"))
    assert main.main(["bench", "--rows", "k"]) == 0
    assert capfd.readouterr().err == "row k skipped: pip install 'normstudy[report]' to measure it\n"


def test_rows_come_in_the_order_of_the_registry() -> None:
    assert rows.check_rows(["i", "a", "c", "a"]) == ["a", "c", "i"]
