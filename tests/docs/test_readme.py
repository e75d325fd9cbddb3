"""The README is short, its output is that of its commands, and its numbers come from the committed tables."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from pages import README, ROOT, fenced, missing, page, words

import normstudy
from normstudy import config
from normstudy.analysis.grid import three_digits
from normstudy.bench import summary, tables
from normstudy.cli import main, manual
from normstudy.reproductions.claims import MARGIN, Evidence, findings
from normstudy.search.answer import critical_values, edge_text
from normstudy.search.rounds import FAIL

PACKAGE = ROOT / "normstudy"


@pytest.fixture(scope="module")
def claims() -> dict[str, Evidence]:
    """The findings of the committed studies by quantity."""
    return {finding.quantity: finding for finding in findings(ROOT / "results")}


def outcomes(study: str, **where: object) -> Counter[str]:
    """How many of a committed study's runs with these values ended in each outcome."""
    runs = normstudy.load(ROOT / "results" / study).runs
    for column, value in where.items():
        runs = runs[runs[column] == value]
    return Counter(runs["outcome"])


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 250


def test_ci_finds_its_two_commands() -> None:
    lines = README.splitlines()
    assert lines.count("pip install -e . && normstudy sweep experiment=quickstart") == 1
    assert lines.count('pip install -e ".[dev]" && pytest') == 1


def test_the_answer_about_warmup_has_the_numbers_of_the_tables(claims: dict[str, Evidence]) -> None:
    without, warmed = (claims[f"runs failed, post, 6 layers, 0.003, warmup {steps}"] for steps in (0, 100))
    pre = claims["loss with warmup 100 minus without, pre, 6 layers, 0.003"]
    assert without.seeds == warmed.seeds == pre.seeds == 5
    assert outcomes("warmup", placement="post", peak_lr=3e-3, warmup_steps=0) == {"stuck": 5}
    phrases = [
        f"get stuck without warmup ({without.text})",
        f"With 100 warmup steps, none gets stuck ({warmed.text})",
        f"raises the loss by {pre.value:.3g} nats [{pre.low:.3g}, {pre.high:.3g}]",
    ]
    assert missing(README, phrases) == []


def test_the_critical_rates_are_those_of_the_search() -> None:
    found, settings = critical_values(ROOT / "results" / "critical_lr", where={"n_layers": "12"})
    found = found[found["edge"] == FAIL].set_index(["placement", "warmup_steps"])

    def text(placement: str, warmup: int) -> str:
        return edge_text(found.loc[(placement, warmup)], settings)

    assert missing(README, [
        f"With 12 layers, {found['n_steps'].iloc[0]} steps and no warmup, half of the post-norm runs fail at a "
        f"peak rate of {text('post', 0)}, and half of the pre-norm runs at {text('pre', 0)}",
        f"With 100 warmup steps, half of the post-norm runs fail at {text('post', 100)}",
    ]) == []  # fmt: skip


def test_the_claims_in_words_have_the_numbers_of_the_tables(claims: dict[str, Evidence]) -> None:
    def value(quantity: str) -> str:
        return f"{abs(claims[quantity].value):.3g}"

    post, warmed, deep, pre = (
        f"first/last-layer gradient, {of}"
        for of in (
            "post, 6 layers, no warmup",
            "post, 6 layers, warmup 100",
            "post, 12 layers, no warmup",
            "pre, 12 layers",
        )
    )
    gain, behind = "loss with warmup 100 minus without, pre, 6 layers, ", "loss of post minus pre at the same rate, "
    index = "exponent of the gradient in the layer's index, pre, 12 layers, step 0"
    (best,) = (quantity for quantity in claims if quantity.startswith("loss of post minus pre, each at its best"))
    (norms,) = (finding for quantity, finding in claims.items() if quantity.startswith("largest relative difference"))
    failed, learned = (claims[f"runs {word}, post, 12 layers, 0.001, warmup 100"] for word in ("failed", "learned"))
    (same,) = (finding for quantity, finding in claims.items() if quantity.startswith("p of two one-sided tests"))
    assert same.value < 0.05
    boundary = normstudy.load(ROOT / "results" / "boundary").runs
    assert outcomes("boundary", placement="post", n_layers=12, peak_lr=1e-3, warmup_steps=100)["unfinished"] == 2
    phrases = [
        f"is {value(f'{post}, step 0')} with 6 layers and {value(f'{deep}, step 0')} with 12",
        f"falls to {value(f'{post}, step 5')} within five updates and to {value(f'{post}, step 599')} by the last step",
        f"With warmup it falls to {value(f'{warmed}, step 20')} and recovers to {value(f'{warmed}, step 599')}",
        f"power -{value(index)}",
        f"is {value(f'{pre}, step 0')} at initialization and {value(f'{pre}, step 599')} at the last step",
        f"of its {boundary['n_steps'].iloc[0]}-step runs, {failed.text} fail, two are unfinished and {learned.text}",
        f"pre-norm gains from warmup too: its loss falls by {value(f'{gain}0.03')} nats",
        f"lower by {value(f'{behind}2 layers, 0.001, no warmup')} nats with 2 layers and by "
        f"{value(f'{behind}4 layers, 0.001, no warmup')} with 4",
        f"trails by {value(best)}",
        f"equivalent within {MARGIN:g} nats (p {same.value:.2g})",
        f"differ by at most {100 * norms.value:.2g} % in any layer",
    ]
    assert missing(README, phrases) == []
    for n_layers in (2, 4):  # post-norm is ahead
        found = claims[f"{behind}{n_layers} layers, 0.001, no warmup"]
        assert found.low < found.value < found.high < 0
        assert found.seeds == 15


def test_its_words_on_cost_and_speed_have_the_numbers_of_the_benchmark() -> None:
    bench = ROOT / "results" / "bench"
    stored = tables.read(bench / "epyc-avx512", ["a", "i"])  # the machine on which row i was measured
    found = summary.results(stored) + summary.results(tables.read(bench, ["e"]))

    def medians(row: str, part: str, case: str = "") -> list[float]:
        return [r.median for r in found if r.goal.row == row and part in r.goal.title and case in r.goal.case]

    slope, last = "over all sizes", "between the two largest"
    attention, norm = "attention vs seq_len", "norm vs seq_len"
    threads, cores = medians("a", "a1 run-steps"), medians("a", "a2 run-steps")
    avx2 = tables.read(bench, ["a"])
    slow = [r.median for r in summary.results(avx2) if "a2 run-steps" in r.goal.title]
    equal = medians("i", "one plain loop per core that records the same")
    number = three_digits
    phrases = [
        f"grows as n^{number(*medians('e', last, attention))} and a norm's as n^{number(*medians('e', last, norm))}",
        f"exponents are {number(*medians('e', slope, attention))} and {number(*medians('e', slope, norm))}",
        f"{number(min(equal))} to {number(max(equal))} times as fast as two plain training loops (one on each core)",
        f"{number(min(cores))} to {number(max(cores))} times as fast as two loops that record nothing",
        f"{number(min(threads))} to {number(max(threads))} times as fast as a single loop",
        f"an {stored['cpu'].iloc[0]} with {stored['cpu_capability'].iloc[0]}",
        f"an {avx2['cpu'].iloc[0]} with {avx2['cpu_capability'].iloc[0]} only",
        f"{number(min(slow))} to {number(max(slow))} times as fast as two loops that record nothing",
    ]
    assert missing(README, phrases) == []


def test_the_output_it_shows_is_what_the_first_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The plan's line but for its seconds, and the comparison's head and columns as of a committed study."""
    (shown,) = fenced(README, "text")[:1]
    monkeypatch.chdir(tmp_path)
    assert (
        main.main(["sweep", "experiment=quickstart", "--dry-run", "execution.workers=2", "execution.device=cpu"]) == 0
    )
    (plan,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("quickstart: "))
    assert re.sub(r"about .*", "about", shown.splitlines()[0]) == re.sub(r"about .*", "about", plan)
    study = str(ROOT / "results" / "warmup")
    assert main.main(["compare", study, "--by", "warmup_steps", "--where", "peak_lr=3e-3"]) == 0
    head, table = capfd.readouterr().out.split("\n\n", 1)
    assert words(head) in words(shown)
    assert words(table.partition("post")[0]) in words(shown)
    assert shown.count(" learned") + shown.count(" stuck") == 6  # two in the line of outcomes
    assert shown.rstrip().endswith("for one HTML page: normstudy report results/quickstart")


@pytest.mark.parametrize(
    "text",
    [README + page("docs/placements.md"), page("results/README.md"), manual.render(manual.COMMAND_HELP["run"], 80)],
    ids=["README", "results/README", "run --help"],
)
def test_every_name_is_listed(text: str) -> None:
    """Wherever a page lists the placements, norms, activations, positions, texts and tokenizers, it lists them all."""
    names = (
        *config.PLACEMENT_NAMES, *config.NORM_NAMES, *config.QK_NORM_NAMES, *config.ACTIVATION_NAMES,
        *config.POSITION_NAMES, *config.DATA_NAMES, *config.TOKENIZER_NAMES,
    )  # fmt: skip
    assert [n for n in names if not re.search(rf"\b{n}\b", text)] == []


def tree() -> dict[str, str]:
    """Path -> description of each line of the README's tree."""
    (lines,) = (text for text in fenced(README, "text") if "normstudy/\n" in text)
    found, parent = {}, ""
    for line in lines.splitlines():
        name, _, description = line.strip().partition(" ")
        parent = parent if line.startswith(" ") else name
        found[name if parent == name else parent + name] = description.strip()
    return found


def test_every_name_in_its_tree_is_there() -> None:
    for path in tree():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_room_of_the_package_is_in_its_tree() -> None:
    """A room is a module or a folder directly under normstudy/."""
    modules = {path.name for path in PACKAGE.glob("*.py")}
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    listed = [path.removeprefix("normstudy/") for path in tree() if path.startswith("normstudy/")][1:]
    assert sorted(listed) == sorted(modules | folders)
