"""What the README shows is run here as it stands, and its numbers come from the committed tables."""

from __future__ import annotations

import re
from pathlib import Path

import measured
import pytest

from normstudy import config
from normstudy.bench import summary, tables
from normstudy.bench.rows import ROWS
from normstudy.cli import main, manual
from normstudy.reproductions.claims import findings, markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ELSEWHERE = re.sub(r"<!-- own-block -->.*?<!-- /own-block -->", "", README, flags=re.S)  # test_own.py runs that text


def test_the_claims_are_those_of_the_tables() -> None:
    between = re.search(r"<!-- claims -->\n(.*)<!-- /claims -->", README, re.S)
    assert between is not None
    assert between[1].strip() == markdown(findings(ROOT / "results")).strip()


BENCH = ROOT / "results" / "bench"
BENCH_TEXT = re.compile(r"<!-- bench -->\n(.*)<!-- /bench -->", re.S)


def test_the_speeds_are_those_of_the_tables() -> None:
    """Between the markers stands what `normstudy bench --show --format markdown` prints; no table, no word of speed."""
    between = BENCH_TEXT.search(README)
    assert between is not None
    stored = tables.stored_rows(BENCH)
    expected = summary.render(tables.read(BENCH, stored), "markdown") if stored else "Not measured yet."
    assert between[1].strip() == expected
    if not stored:
        assert re.findall(r"(?i)times (?:as fast|faster)|speed-?up|run-steps? per second", README) == []


FOLDERS = [BENCH, *sorted(p for p in BENCH.iterdir() if p.is_dir() and p.name != "quick")]
MACHINES = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def line_of_speeds(folder: Path) -> str:
    """What README's table of CPUs has to say of one: spans of medians over the shapes of row a."""
    stored = tables.read(folder, ["a"])
    found = summary.results(stored)

    def span(of: str) -> str:
        medians = [r.median for r in found if r.goal.title.startswith(of)]
        assert len(medians) == 5
        return f"{summary.number(min(medians))} to {summary.number(max(medians))}"

    share = {r.goal.title: summary.number(r.median) for r in found if r.goal.title.startswith("a3")}
    missed = sum(r.verdict == "not met" for r in found)
    cells = [
        f"{stored['cpu'].iloc[0]}, {stored['cpu_capability'].iloc[0]}",
        span("a1 run-steps against"),
        span("a2 run-steps against"),
        span("a2 limit: the step's operations without its Python"),
        span("a2 limit: the step's operations, each alone in a cache"),
        share["a3 share of the machine's matrix-product limit at the same shapes"],
        f"{missed} of 11",
        f"`{folder.relative_to(ROOT)}`",
    ]
    return f"| {' | '.join(cells)} |"


@MACHINES
def test_the_speeds_on_each_cpu_are_those_of_its_tables(folder: Path) -> None:
    assert line_of_speeds(folder) in README.splitlines()


@MACHINES
def test_every_goal_that_is_missed_is_told(folder: Path) -> None:
    """Outside row a, whose number the table of CPUs has, with both numbers."""
    missed = [r for r in summary.results(tables.read(folder, tables.stored_rows(folder))) if r.verdict == "not met"]
    words = " ".join(README.split())
    for r in missed:
        if r.goal.row != "a":
            assert f"({summary.number(r.median)} {r.unit} of {r.goal.limit:g}" in words, r.goal.title


@MACHINES
def test_a_committed_table_is_of_a_whole_benchmark_of_a_commit(folder: Path) -> None:
    """Every row but a GPU's, every goal of `--full`, measured by code that is in the history."""
    rows = tables.stored_rows(folder)
    if not rows:
        assert [p.name for p in folder.glob("*") if p.is_file()] == []  # no figure without its tables
        return
    stored = tables.read(folder, rows)
    assert set("abcdefh") <= set(rows)
    assert set(stored["mode"]) == {"full"}
    assert stored["git_commit"].notna().all()
    assert not stored["git_commit"].str.contains("dirty").any()
    assert [goal for goal in summary.missing(stored) if goal.limit is not None] == []
    assert (folder / "bench.png").exists()


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", ELSEWHERE, re.S))
def test_python_snippets_run(snippet: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out


def commands() -> list[list[str]]:
    """The normstudy command lines of the README, without comments, the shell's quotes taken off."""
    lines = re.findall(r"^normstudy (.*)$", "\n".join(re.findall(r"```bash\n(.*?)```", ELSEWHERE, re.S)), re.M)
    return [line.split("#")[0].replace("'", "").split() for line in lines]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_accepted(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps are planned, not trained; plot and compare run on the committed studies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("the quick brown fox jumps over the lazy dog. " * 500)
    words = [str(ROOT / w) if w.startswith("results/") else w for w in words]
    if words[0] == "sweep" and "--dry-run" not in words:
        words.append("--dry-run")
    if words[0] == "bench":  # a row of the tests in place of ours, which take minutes
        for letter in reversed([*ROWS]):  # put back in the opposite order, which is theirs
            monkeypatch.delitem(ROWS, letter)
        monkeypatch.setitem(ROWS, "a", measured.ROW)
        measured.write(tmp_path / "results" / "bench", measured.by_hand({"sorted": [1.0]}))
    if words[0] == "plot":  # test_committed.py draws all figures of that study
        words += ["--only", "headline,loss_curves", *([] if "--out" in words else ["--out", "figures"])]
    if words[0] == "run":
        words += ["data=synthetic", "model.d_model=16", "model.n_layers=1", "data.seq_len=8", "schedule.n_steps=100"]
    assert main.main(words) == 0


@pytest.mark.parametrize(
    "text",
    [README, (ROOT / "results" / "README.md").read_text(), manual.RUN_HELP],
    ids=["README", "results/README", "run --help"],
)
def test_every_name_is_told(text: str) -> None:
    """Wherever a page lists the placements, norms, inits, activations and positions, it lists them all."""
    names = (
        *config.PLACEMENT_NAMES, *config.NORM_NAMES, *config.QK_NORM_NAMES, *config.ACTIVATION_NAMES,
        *config.POSITION_NAMES, *config.DATA_NAMES, *config.TOKENIZER_NAMES,
    )  # fmt: skip
    assert [n for n in names if not re.search(rf"\b{n}\b", text)] == []


def test_every_file_it_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
