"""docs/speed.md shows the committed benchmark: its table, one line per CPU, every missed goal, and how cost grows."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd
import pytest
from pages import ROOT, block, missing, page

from normstudy.analysis.grid import three_digits
from normstudy.bench import summary, tables

PAGE = page("docs/speed.md")
BENCH = ROOT / "results" / "bench"
FOLDERS = [BENCH, *sorted(p for p in BENCH.iterdir() if p.is_dir() and p.name != "quick")]
MACHINES = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@functools.cache
def stored(folder: Path) -> pd.DataFrame:
    return tables.read(folder, tables.stored_rows(folder))


@functools.cache
def results(folder: Path) -> list[summary.Result]:
    return summary.results(stored(folder))


def cpu(folder: Path) -> str:
    """The name of the CPU that a folder was measured on, and its vector instructions."""
    first = stored(folder).iloc[0]
    return f"{first['cpu']}, {first['cpu_capability']}"


def test_the_table_is_what_bench_show_prints() -> None:
    assert block(PAGE, "bench") == summary.render(stored(BENCH), "markdown")


def line_of(folder: Path) -> str:
    """A CPU's line: the range of the medians over the shapes of row a."""
    found = [r for r in results(folder) if r.goal.row == "a"]

    def span(title: str) -> str:
        medians = [r.median for r in found if r.goal.title.startswith(title)]
        assert len(medians) == 5
        return f"{three_digits(min(medians))} to {three_digits(max(medians))}"

    (share,) = (r for r in found if r.goal.title.startswith("a3 time of a run-step's matrix products"))
    goals = [r.verdict for r in found if r.verdict != "no goal"]
    cells = [
        cpu(folder),
        span("a1 run-steps per second"),
        span("a2 run-steps per second"),
        three_digits(share.median),
        f"{goals.count('not met')} of {len(goals)}",
        f"`{folder.relative_to(ROOT)}`",
    ]
    return f"| {' | '.join(cells)} |"


@MACHINES
def test_the_speeds_on_each_cpu_are_those_of_its_tables(folder: Path) -> None:
    assert line_of(folder) in PAGE.splitlines()


def test_loops_that_record_as_much_are_those_of_row_i() -> None:
    found = [r for r in results(BENCH / "epyc-avx512") if r.goal.row == "i"]
    equal, hooks = (
        {r.goal.case: three_digits(r.median) for r in found if word in r.goal.title} for word in ("same", "hook")
    )
    assert len(equal) == 5
    assert missing(PAGE, [f"| {case} | {ratio} | {hooks[case]} |" for case, ratio in equal.items()]) == []


def test_a_page_and_a_watched_loop_cost_what_rows_k_and_l_measured() -> None:
    found = results(BENCH / "xeon-avx512")
    small, large = (
        {r.goal.metric: three_digits(r.median) for r in found if r.goal.row == "k" and r.goal.case.startswith(runs)}
        for runs in ("250 runs", "1,000 runs")
    )
    phrases = [
        f"a page of 250 runs in {small['seconds']} s, of {small['megabytes']} MB,",
        f"one of 1,000 runs of 12 layers in {large['seconds']} s, of {large['megabytes']} MB",
    ]
    for r in (r for r in found if r.goal.row == "l"):
        low, high = min(r.numbers), max(r.numbers)
        interval = f"{three_digits(r.median)} [{three_digits(low)}, {three_digits(high)}]"
        phrases.append(f"| {r.goal.title.removesuffix(', time against the bare loop')} | {interval} |")
    assert len(phrases) == 6
    assert missing(PAGE, phrases) == []


def lines_of_missed_goals() -> list[str]:
    """A line for each goal outside row a that some machine misses: what was measured on each, in bold where missed."""
    found = {folder: {(r.goal.row, r.goal.case, r.goal.title): r for r in results(folder)} for folder in FOLDERS}
    missed = {k: r for rs in found.values() for k, r in rs.items() if r.verdict == "not met" and k[0] != "a"}
    lines = [f"| row | what | goal | {' | '.join(map(cpu, FOLDERS))} |", "|---" * (3 + len(FOLDERS)) + "|"]
    order = [*dict.fromkeys(key for of in [BENCH, *FOLDERS] for key in found[of])]
    for key, first in sorted(missed.items(), key=lambda item: order.index(item[0])):
        row, case, title = key
        what = title if title == case else f"{case}: {title}"
        unit = f" {first.unit}".rstrip()
        cells = []
        for folder in FOLDERS:
            if key not in found[folder]:
                cells.append("not measured")
                continue
            text = three_digits(found[folder][key].median) + unit
            cells.append(f"**{text}**" if found[folder][key].verdict == "not met" else text)
        lines.append(f"| {row} | {what} | {first.goal.sense} {first.goal.limit:g}{unit} | {' | '.join(cells)} |")
    return lines


def test_every_goal_that_a_machine_misses_is_on_the_page() -> None:
    assert "\n".join(lines_of_missed_goals()) in PAGE


def test_how_cost_grows_is_what_row_e_measured() -> None:
    found = {(r.goal.case, r.goal.title): r for r in results(BENCH) if r.goal.row == "e"}

    def told(case: str, words: str) -> str:
        (r,) = (r for (of, title), r in found.items() if of == case and words in title)
        low, high = min(r.numbers), max(r.numbers)
        return f"{three_digits(r.median)} [{three_digits(low)}, {three_digits(high)}]"

    length, _, interval = told("attention = projections", "seq_len at which attention takes").partition(" ")
    phrases = [
        f"n^{told('attention vs seq_len', 'between the two largest')}",
        f"n^{told('norm vs seq_len', 'between the two largest')}",
        f"from {length} tokens on {interval}",
    ]
    assert missing(PAGE, phrases) == []


@MACHINES
def test_a_committed_table_is_of_a_whole_benchmark_of_a_commit(folder: Path) -> None:
    """Every row but a GPU's, every goal of `--full`, measured by code that is in the history.

    Rows i to l and the dry run's estimate came later. Each was measured on one machine with AVX-512 only.
    """
    table = stored(folder)
    assert set("abcdef") <= set(table["row"])
    assert set(table["mode"]) == {"full"}
    assert table["git_commit"].notna().all()
    assert not table["git_commit"].str.contains("dirty").any()
    lacking = [goal for goal in summary.missing(table) if goal.limit is not None]
    if folder.name == "epyc-avx512":
        assert {goal.row for goal in lacking} <= set("jkl")
    assert [goal for goal in lacking if goal.row not in "ijkl" and goal.subject != "dry run's estimate"] == []
    assert (folder / "bench.png").exists()
