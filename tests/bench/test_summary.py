"""Ratios by round, medians, verdicts and the two printed forms, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import measured
import pandas as pd
import pytest
from measured import MACHINE, by_hand, write

from normstudy.bench import summary, tables
from normstudy.bench.rows import ROWS, Goal, Sample

RATIO, UNREACHABLE, VALUE, PLAIN, NEVER = measured.GOALS


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "a", measured.ROW)


def stored(tmp_path: Path, *parts: Sequence[Sample]) -> pd.DataFrame:
    write(tmp_path, [s for part in parts for s in part])
    return tables.read(tmp_path, ["a"])


def per_s(sorted_: Sequence[float], reversed_: Sequence[float]) -> list[Sample]:
    return by_hand({"sorted": sorted_, "reversed": reversed_}, case="10000", metric="per_s", unit="1/s")


def test_a_ratio_is_taken_round_by_round(tmp_path: Path) -> None:
    """1, 2, 1/2: median 1, though the medians' ratio is 2. A round that one subject lacks has none."""
    found = summary.results(stored(tmp_path, per_s([1, 4, 6, 100], [1, 2, 12])))
    assert [r.goal for r in found] == [RATIO, UNREACHABLE]
    assert found[0].numbers == (1.0, 2.0, 0.5)
    assert found[0].median == 1.0
    assert found[0].unit == ""


def test_rounds_are_matched_by_their_number(tmp_path: Path) -> None:
    """Every second round is measured in the other order."""
    samples = per_s([10, 20, 30], [1, 2, 5])
    assert summary.results(stored(tmp_path, samples[::-1]))[0].numbers == (10.0, 10.0, 6.0)


def test_a_goal_without_an_opponent_is_the_value_itself(tmp_path: Path) -> None:
    found = summary.results(stored(tmp_path, by_hand({"sorted": [3, 1, 2], "reversed": [5]})))
    assert [(r.goal, r.numbers, r.unit) for r in found] == [(VALUE, (3.0, 1.0, 2.0), "s"), (PLAIN, (5.0,), "s")]


@pytest.mark.parametrize(
    ("sense", "limit", "verdict"),
    [
        ("at least", 2.0, "met"), ("at least", 2.01, "not met"), ("at least", 1.99, "met"),
        ("at most", 2.0, "met"), ("at most", 1.99, "not met"), ("at most", 2.01, "met"),
        (None, None, "no goal"),
    ],
)  # fmt: skip
def test_the_median_is_held_against_the_goal(sense: str | None, limit: float | None, verdict: str) -> None:
    goal = replace(VALUE, sense=sense, limit=limit)
    assert summary.Result(goal, "s", (0.1, 2.0, 50.0)).verdict == verdict


def test_what_has_no_sample_is_missing_and_not_met_by_nothing(tmp_path: Path) -> None:
    frame = stored(tmp_path, per_s([1], [2]))
    assert summary.missing(frame) == [VALUE, PLAIN, NEVER]
    assert summary.missing(stored(tmp_path, by_hand({"sorted": [1]}))) == [RATIO, UNREACHABLE, PLAIN, NEVER]


@pytest.mark.parametrize(
    ("goal", "match"),
    [
        (replace(PLAIN, opponent="other"), r"several units \(ms, s\)"),
        (replace(PLAIN, subject="both"), r"several units \(ms, s\)"),
    ],
)
def test_a_goal_that_cannot_be_judged_is_a_bug(
    goal: Goal, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "GOALS", [goal])
    milliseconds = by_hand({"other": [1], "both": [1]}, unit="ms")
    both = replace(milliseconds[1], unit="s", round=1)
    with pytest.raises(ValueError, match=match):
        summary.results(stored(tmp_path, by_hand({"reversed": [1], "sorted": [1]}), milliseconds, [both]))


def test_a_theory_stands_beside_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a goal; it is never judged."""
    slope = Goal("a", "1000", "slope", "slope", "sorted")
    monkeypatch.setattr(measured, "GOALS", [slope, replace(slope, metric="slope_at_end")])
    samples = by_hand({"sorted": [1.5, 1.7, 1.6], "theory": [2.0, 2.0, 2.0]}, metric="slope", unit="1")
    frame = stored(tmp_path, samples, by_hand({"sorted": [1.0]}, metric="slope_at_end", unit="1"))
    assert [result.theory for result in summary.results(frame)] == [2.0, None]
    assert summary.render(frame, "markdown").splitlines()[2:5] == [
        "| a | 1000 | slope | 1.6 [1.5, 1.7] | 3 | theory 2 | no goal |",
        "| a | 1000 | slope | 1 | 1 | none | no goal |",
        "",
    ]


# ---- words ----------------------------------------------------------------------------------------------


TABLE = """\
row  case   what                       median [smallest, largest]  rounds  goal              verdict
a    10000  sorted, against reversed   2 [1, 3]                    3       at least 1e-06    met
            the same | unreachable     2 [1, 3]                    3       at least 1000000  not met
     1000   time to sort               0.25 s                      1       at most 60 s      met
            time to sort the reversed  0.5 s                       1       none              no goal
"""
MARKDOWN = r"""
| row | case | what | median [smallest, largest] | rounds | goal | verdict |
| --- | --- | --- | --- | --- | --- | --- |
| a | 10000 | sorted, against reversed | 2 [1, 3] | 3 | at least 1e-06 | met |
| a | 10000 | the same \| unreachable | 2 [1, 3] | 3 | at least 1000000 | not met |
| a | 1000 | time to sort | 0.25 s | 1 | at most 60 s | met |
| a | 1000 | time to sort the reversed | 0.5 s | 1 | none | no goal |
"""
MADE = (
    "Row a: --full on AMD EPYC, 2 cores, AVX2, Python 3.11.7, torch 2.13.0+cpu, openblas 0.3.31 Haswell, "
    "commit 0123456789, 2026-11-24."
)


def test_both_forms(tmp_path: Path) -> None:
    frame = stored(tmp_path, per_s([2, 6, 5], [2, 2, 2.5]), by_hand({"sorted": [0.25], "reversed": [0.5]}))
    table, markdown = summary.render(frame, "table"), summary.render(frame, "markdown")
    assert table.startswith(TABLE)
    assert markdown.startswith(MARKDOWN.lstrip())
    for text in (table, markdown):
        assert summary.LEGEND in " ".join(text.split())
        assert MADE in " ".join(text.split())
    assert table.endswith("\nNot measured: a 1000000.")  # the case as a whole
    assert "1000000." not in markdown  # a page tells what there is
    part = summary.render(stored(tmp_path, by_hand({"sorted": [0.25]})))
    assert part.endswith("\nNot measured: a 10000; a 1000: time to sort the reversed; a 1000000.")
    assert max(map(len, table.splitlines())) <= sum(summary.MOST_WIDTH) + 12


def test_long_texts_are_broken_within_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "run-steps against the plain loop with all threads, " * 3
    case = "1,000 runs x 2,000 steps x 12 layers, one file a table"
    monkeypatch.setattr(measured, "GOALS", [replace(VALUE, case=case, title=title.strip())])
    lines = summary.render(stored(tmp_path, by_hand({"sorted": [1.0, 2.0]}, case=case))).splitlines()
    starts = [lines[0].index(name) for name in ("case", "what", "median")]
    body = lines[1 : lines.index("")]
    for text, (start, end) in zip((case, title), itertools.pairwise(starts), strict=True):
        assert " ".join(line[start:end].strip() for line in body).split() == text.split()
    assert max(map(len, lines)) <= sum(summary.MOST_WIDTH) + 12
    assert lines[1].endswith("met")


def test_rows_measured_alike_share_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in "abc":
        monkeypatch.setitem(ROWS, row, measured.ROW)
    gpu = MACHINE | {"device": "NVIDIA H100", "git_commit": None, "n_cores": 1}
    write(tmp_path, by_hand({"sorted": [1]}, row="a"))
    write(tmp_path, by_hand({"sorted": [1]}, row="b"), gpu, mode="quick")
    write(tmp_path, by_hand({"sorted": [1]}, row="c"))
    other = (
        "AMD EPYC, 1 core, AVX2 and NVIDIA H100, Python 3.11.7, torch 2.13.0+cpu, openblas 0.3.31 Haswell, "
        "outside a checkout, 2026-11-24."
    )
    assert summary.machine_lines(tables.read(tmp_path, ["a", "b", "c"])) == [
        MADE.replace("Row a", "Rows a, c"),
        f"Row b: --quick on {other}",
    ]
    write(tmp_path, by_hand({"sorted": [1]}), MACHINE | {"git_commit": "0123456789abcdef-dirty"})
    assert "commit 0123456789-dirty," in summary.machine_lines(tables.read(tmp_path, ["a"]))[0]


def test_summing_up_needs_no_torch_and_every_row_that_is_there_is_light(tmp_path: Path) -> None:
    """Importing a row's module imports neither torch nor hydra; each goal has a sense and a limit, or neither."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['hydra'] = None\n"
        "from normstudy.bench import rows\n"
        "print([r for r in rows.ROWS if not rows.load(r)[0] or {g.sense for g in rows.load(r)[0]} > {None, 'at least',"
        " 'at most'} or any((g.sense is None) != (g.limit is None) for g in rows.load(r)[0])])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_legend_says_how_the_numbers_came_about() -> None:
    for word in ("in one round", "median", "smallest", "largest"):
        assert re.search(word, summary.LEGEND)
