"""The command: which tables it measures again, on how many processes, and one line for every bad request."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import on_terminal, wait_for, workers_of
from reduced import REDUCED, STORED, measured

from normstudy.cli import main
from normstudy.errors import ConfigError
from normstudy.reproductions import run, tables, workers
from normstudy.reproductions.entry import MEASUREMENT, PRE, Job, Need, Sizes, Variant
from normstudy.reproductions.run import REPRODUCTIONS

Capture = pytest.CaptureFixture[str]
REMEDY = "rerun the same command, or use fewer --workers\n"
NAMES = ["xiong-theorem1-pre", "admin-output-change", "mixln-balance"]


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once")
    assert run.reproduce(NAMES, out, processes=1, sizes=REDUCED)[1] == NAMES
    return out


# ---- measuring ------------------------------------------------------------------------------------------


def test_the_same_bytes_on_two_workers_and_in_this_process(once: Path, tmp_path: Path) -> None:
    run.reproduce(NAMES, tmp_path / "two", processes=2, sizes=REDUCED)
    assert content(tmp_path / "two") == content(once)
    assert sorted(content(once)) == sorted(
        [*(f"tables/{n}.parquet" for n in NAMES), *(f"figures/{n}.png" for n in NAMES)]
    )
    for name in NAMES:  # alone or with others, here or there
        key = tables.definition(REDUCED, REPRODUCTIONS[name].needs(REDUCED))
        tables.write(tmp_path / "here", name, measured()[name], key)
        assert tables.path(tmp_path / "here", name).read_bytes() == tables.path(once, name).read_bytes()


def test_what_is_stored_is_not_measured_again(once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[Variant]] = []

    def nothing(queue: list[Job], processes: int) -> list[object]:
        asked.append({job.variant for job in queue})
        return []

    monkeypatch.setattr(workers, "run", nothing)
    before = content(once)
    found, new = run.reproduce(NAMES, once, sizes=REDUCED)
    assert (list(found), new, asked) == (NAMES, [], [])
    assert "measured 0 predictions; 3 were already stored (--again measures all). Tables" in run.summary(3, 0, once)
    _, new = run.reproduce(NAMES[:1], once, again=True, sizes=REDUCED)
    assert (new, asked) == (NAMES[:1], [{PRE}])
    assert content(once) == before


def test_a_damaged_table_is_one_line(once: Path, tmp_path: Path) -> None:
    """Wherever a bit is changed: the table is measured again, or refused, or has the same numbers."""
    whole = tables.read(once, NAMES[0])
    sound, damaged = tables.path(once, NAMES[0]).read_bytes(), tables.path(tmp_path, NAMES[0])
    damaged.parent.mkdir()
    refused = []
    for at in range(0, len(sound) - 8, max(1, len(sound) // 60)):
        damaged.write_bytes(sound[:at] + bytes([sound[at] ^ 32]) + sound[at + 1 :])
        if tables.stored_definition(tmp_path, NAMES[0]) != tables.stored_definition(once, NAMES[0]):
            continue
        try:
            assert tables.read(tmp_path, NAMES[0]).equals(whole)
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) > 3
    assert all(re.fullmatch(r".* \(.*\): remove the file, and run normstudy reproduce again", line) for line in refused)


def test_another_definition_is_measured(once: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tables.stored_definition(once, NAMES[0])
    needs = REPRODUCTIONS[NAMES[0]].needs(REDUCED)
    assert tables.definition(REDUCED, needs) == key
    others = [
        tables.definition(REDUCED, [Need(n.kind, n.variant, n.depths, n.seeds + 1) for n in needs]),
        tables.definition(REDUCED, [Need(n.kind, n.variant, n.depths[1:], n.seeds) for n in needs]),
        tables.definition(REDUCED, [Need(n.kind, Variant("post"), n.depths, n.seeds) for n in needs]),
        tables.definition(REDUCED, [Need("stream", n.variant, n.depths, n.seeds) for n in needs]),
        tables.definition(Sizes(), REPRODUCTIONS[NAMES[0]].needs(Sizes())),
    ]
    monkeypatch.setattr(tables, "MEASUREMENT", MEASUREMENT + 1)
    others.append(tables.definition(REDUCED, needs))
    assert len({key, *others}) == 7
    assert tables.stored_definition(tmp_path, NAMES[0]) is None
    tables.path(tmp_path, NAMES[0]).parent.mkdir()
    tables.path(tmp_path, NAMES[0]).write_bytes(tables.path(once, NAMES[0]).read_bytes()[:100])
    assert tables.stored_definition(tmp_path, NAMES[0]) is None  # half a file


def test_what_reproductions_share_is_measured_once() -> None:
    sizes = Sizes()
    needs = [need for name in REPRODUCTIONS for need in REPRODUCTIONS[name].needs(sizes)]
    wanted = run.units(needs)
    queue = run.jobs(wanted, sizes)
    handed_out = [(job.kind, job.variant, job.depth, seed) for job in queue for seed in job.seeds]
    assert sorted(map(str, handed_out)) == sorted(map(str, wanted))
    assert len(set(wanted)) == len(wanted) < sum(len(n.depths) * n.seeds for n in needs)
    assert max(job.depth * len(job.seeds) for job in queue) <= run.LAYERS_AT_ONCE
    assert [run.cost(job) for job in queue] == sorted((run.cost(job) for job in queue), reverse=True)


def test_an_error_in_a_worker_names_the_measurement() -> None:
    bad = Job("no_such_kind", PRE, 2, (0,), REDUCED)
    with pytest.raises(workers.MeasuringFailed, match=r"(?s)no_such_kind of model pre at depth 2 failed\..*KeyError"):
        list(workers.run([bad], 1))
    assert workers_of(os.getpid()) == []


def test_a_killed_worker_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    real = run.reproduce
    monkeypatch.setattr(run, "reproduce", lambda *a, **k: real(*a, **k, sizes=REDUCED))

    def kill() -> None:
        wait_for(lambda: workers_of(os.getpid()))
        for child in workers_of(os.getpid()):
            os.kill(child, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main.main(["reproduce", "peri-variance", "--out", str(tmp_path), "--workers", "1"]) == 1
    killer.join()
    assert capfd.readouterr() == ("", "error: a measuring process was killed by signal 9: " + REMEDY)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(("lines", "columns"), [(0, 0), (30, 110)])
def test_a_terminal_sees_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch, lines: int, columns: int) -> None:
    with on_terminal(lines, columns) as read, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", read.stream)
        with run._bar(4.0) as bar:
            for _ in range(4):
                bar.update(1.0)
    assert re.search(r"measuring: 100%\|.*\| 00:00 elapsed, 00:00 left", read.seen)


# ---- the command line -------------------------------------------------------------------------------------


def test_list_names_all_and_measures_nothing(capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--list"], ["--tier", "0", "--list"]):
        assert main.main(["reproduce", *words]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        assert [line.split()[0] for line in out.splitlines() if "(tier 0)" in line] == list(REPRODUCTIONS)
        assert "arXiv:2002.04745" in out
    assert content(tmp_path) == {}


def test_a_pipe_gets_the_table_and_nothing_else(tmp_path: Path) -> None:
    words = [Path(sys.executable).with_name("normstudy"), "reproduce", "peri-variance", "--format", "markdown"]
    (tmp_path / "tables").mkdir()
    tables.path(tmp_path, "peri-variance").write_bytes(tables.path(STORED, "peri-variance").read_bytes())
    done = subprocess.run([*words, "--out", tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert [line.count("|") for line in done.stdout.splitlines()] == [8, 8, 8]
    assert "\r" not in done.stdout
    assert "`peri-variance`" in done.stdout


def test_markdown_cells_hold_no_bare_bar() -> None:
    findings = {name: REPRODUCTIONS[name].findings(table) for name, table in measured().items()}
    lines = run.render(findings, "markdown").splitlines()
    assert len(lines) == 2 + sum(map(len, findings.values()))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(run.HEADER) + 1}


def test_the_script_is_the_same_command(capfd: Capture) -> None:
    script = Path(__file__).parents[2] / "scripts" / "reproduce.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert main.main(["reproduce", "--help"]) == 0
    assert done.stdout == capfd.readouterr().out


@pytest.mark.parametrize(
    ("request_", "held"),
    [
        ("", ["there is nothing to measure", "--tier 0", "--list"]),
        ("--again", ["there is nothing to measure"]),
        ("--tier 1", ["--tier 1 does not exist", "give --tier 0"]),
        ("--tier one", ["--tier", "'one'", "--help"]),
        ("--tier", ["--tier", "--help"]),
        ("--tier 0 peri-variance", ["--tier 0 and names"]),
        ("peri", ["'peri' is not a reproduction", "--list"]),
        ("xiong-lema2-pre", ["'xiong-lema2-pre'", "Did you mean xiong-lemma2-pre?"]),
        ("peri-variance peri-varianze", ["'peri-varianze'", "Did you mean peri-variance?"]),
        ("nonsense --list", ["'nonsense' is not a reproduction"]),
        ("peri-variance --workers 0", ["--workers 0 is below 1: give at least 1"]),
        ("peri-variance --workers two", ["--workers", "'two'"]),
        ("peri-variance --format csv", ["--format", "'csv'", "table"]),
        ("peri-variance --out file", ["--out file", "is a file"]),
        ("peri-variance --out file/below", ["--out file/below", "is a file"]),
        ("peri-variance --seeds 3", ["unrecognized arguments: --seeds 3", "--help"]),
    ],
)  # fmt: skip
def test_bad_requests(
    request_: str, held: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main.main(["reproduce", *request_.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for words in held:
        assert words in err
    assert content(tmp_path) == {"file": b""}
