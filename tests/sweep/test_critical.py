"""Searches for critical values with real runs: the answer, in pieces, crashed, refused, of other axes."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from handmade import handmade_config, write_handmade_run
from processes import finish
from studies import assert_same_tables, draw_no_figures, series_bytes

import normstudy
from normstudy.cli.main import main
from normstudy.config import sources
from normstudy.errors import ConfigError
from normstudy.search.answer import answer, critical_values, with_outcomes
from normstudy.search.posterior import posterior
from normstudy.search.rounds import COUNTS_AS, SENTINELS
from normstudy.search.settings import FILE, Settings, keep
from normstudy.study import checkpoints, locks, tables
from normstudy.upkeep.check import check_study
from normstudy.upkeep.compact import compact_study

TINY = [
    "data=synthetic", "data.seq_len=8", "data.batch_size=1", "model.d_model=16", "model.n_heads=2",
    "schedule.n_steps=30", "eval.windows=4", "probe.dense_steps=0", "execution.workers=1",
    "search.low=1e-3", "search.high=10",
]  # fmt: skip
BLOCK = "def f(x, attn, mlp, norm1, norm2):\n    x = x + attn(norm1(x))\n    return x + mlp(norm2(x))\n"
CELLS = ["model.n_layers=1", "model.placement=pre,post", "study=s", "search.max_runs=14"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw_no_figures(monkeypatch)
    return tmp_path


def critical(*words: str) -> int:
    return main(["critical", *TINY, *words])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells, searched at once."""
    root = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        draw_no_figures(patch)
        assert critical(*CELLS, f"results_dir={root}") == 0
    return root / "s"


def test_the_answer_is_that_of_the_stored_runs(searched: Path) -> None:
    """Estimated again from the outcomes that `load` gives. The order of the rows does not matter."""
    found, settings = critical_values(searched)
    shuffled = with_outcomes(searched, tables.read(searched, "runs")).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(answer(shuffled, settings), found, check_exact=True)
    runs = normstudy.load(searched).runs
    assert list(found["placement"]) == ["post", "post", "pre", "pre"]
    assert list(found["edge"]) == [*COUNTS_AS] * 2
    assert check_study(searched).sound
    for row in found.to_dict("records"):
        cell = runs[runs["placement"] == row["placement"]]
        assert row["runs"] == len(cell) <= 14 + 2 * SENTINELS
        assert cell["seed"].is_unique
        counts: dict[int, tuple[int, int]] = {}
        for rate, outcome in zip(cell["peak_lr"], cell["outcome"], strict=True):
            position, bad = round(100 * math.log10(rate)), outcome in COUNTS_AS[row["edge"]]
            failed, others = counts.get(position, (0, 0))
            counts[position] = (failed + bad, others + (not bad))
        assert float(f"{10 ** (posterior(counts, -300, 100).quantile(0.5) / 100):.3g}") == row["value"]
        assert row["low"] < row["value"] < row["high"]
        inside = cell["peak_lr"].between(row["low"], row["high"]) & (cell["outcome"] == "unfinished")
        assert row["unfinished"] == inside.sum()


def test_the_same_search_trains_nothing_and_is_refused_with_other_settings(
    searched: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(shutil.copytree(searched, here / "results/s"))
    before = {path: path.read_bytes() for path in study.rglob("*.*")}
    assert critical(*CELLS) == 0
    out = capsys.readouterr().out
    assert "of which this command trained 0; for the same expected error (" in out
    assert re.search(r"^post +\S+ \[.*\n^pre +", out, re.M)
    for words, what in (
        (["search.low=1e-4"], "search.low 0.0001 differs from 0.001 in the earlier search of results/s: use the same"),
        (["--of", "warmup_steps", "search.high=9", "search.low=0"], "search.of warmup_steps differs from peak_lr"),
        (["eval.windows=2"], "eval.windows 2 differs from 4 in the earlier search of results/s"),
        (["probe.every=7"], "probe.every 7 differs from 20"),
        (["data_seed=1"], "data_seed 1 differs from null"),
    ):
        assert critical(*CELLS, *words) == 2
        assert capsys.readouterr().err.startswith(f"error: {what}"), words
    assert before == {path: path.read_bytes() for path in study.rglob("*.*")}
    compact_study(study, seal=True)
    assert critical(*CELLS, "search.max_runs=40") == 2
    assert " is sealed " in capsys.readouterr().err


def test_a_search_in_pieces_ends_in_the_same_answer(searched: Path, here: Path) -> None:
    """First one cell with fewer runs, then all, with a run lost in between, and with another execution.

    The first search has decided sooner, and may have repeated sentinels that the whole search does not repeat.
    """
    assert critical(*CELLS, "model.placement=post", "search.max_runs=10") == 0
    lost = min(tables.statuses(here / "results/s"))
    for path in (here / "results/s/tables").glob(f"*/{lost}*"):
        path.unlink()
    assert critical(*CELLS, "execution.runs_per_batch=1") == 0
    answers = [critical_values(study)[0] for study in (searched, here / "results/s")]
    pd.testing.assert_frame_equal(*answers, check_exact=True)
    files, here_too = (series_bytes(study) for study in (searched, here / "results/s"))
    assert files.items() <= here_too.items()
    extra = normstudy.load(here / "results/s").runs
    assert set(extra.loc[~extra["run_id"].isin(tables.statuses(searched)), "seed"]) <= {*range(2000, 2012)}


def test_other_runs_of_the_study_enter_the_estimate_but_not_the_rounds(searched: Path, here: Path) -> None:
    """A run with another data_seed counts beside that of the search, one that is evaluated otherwise does not count."""
    study = Path(shutil.copytree(searched, here / "results/s"))
    before = critical_values(study)[0]
    sweep = [word for word in TINY if not word.startswith("search")]
    sweep += ["model.n_layers=1", "model.placement=post", "study=s", f"schedule.peak_lr={rate_of(study, seed=0)}"]
    assert main(["run", *sweep, "eval.windows=2"]) == 0
    pd.testing.assert_frame_equal(critical_values(study)[0], before)
    assert main(["run", *sweep, "data_seed=7"]) == 0
    after = critical_values(study)[0]
    assert list(after["runs"] - before["runs"]) == [1, 1, 0, 0]
    assert list(after["decided"]) == list(before["decided"])
    for path in (study / "tables").glob(f"*/{own_run(study)}*"):
        path.unlink()
    lost = critical_values(study)[0]
    assert list(lost["runs"] - after["runs"]) == [0, 0, 0, 0]  # the one that is evaluated otherwise stands in
    assert list(lost["decided"])[:2] == ["no", "no"]  # but the round lacks its run


def rate_of(study: Path, seed: int) -> str:
    runs = tables.read(study, "runs")
    return str(runs.loc[(runs["placement"] == "post") & (runs["seed"] == seed), "peak_lr"].iloc[0])


def own_run(study: Path) -> str:
    """The search's own run of post with seed 0."""
    runs = tables.read(study, "runs")
    own = (runs["placement"] == "post") & (runs["seed"] == 0) & (runs["data_seed"] == 0) & (runs["eval_windows"] == 4)
    return str(runs.loc[own, "run_id"].iloc[0])


def test_a_search_goes_on_over_a_damaged_row_and_without_its_settings(searched: Path, here: Path) -> None:
    """A power failure may damage the row of a run that trains; it is trained again. The settings are kept again."""
    study = Path(shutil.copytree(searched, here / "results/s"))
    before = critical_values(study)[0]
    row = study / "tables/runs" / f"{own_run(study)}.parquet"
    row.write_bytes(row.read_bytes()[:100])
    (study / checkpoints.FOLDER).mkdir(parents=True)
    (study / checkpoints.FOLDER / row.stem).write_bytes(b"")
    assert critical(*CELLS) == 0
    pd.testing.assert_frame_equal(critical_values(study)[0], before)
    (study / FILE).unlink()
    assert critical(*CELLS) == 0
    pd.testing.assert_frame_equal(critical_values(study)[0], before)


def test_a_data_seed_that_is_given_is_not_the_seed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if the largest seed of the search has it."""
    words = ["model.n_layers=1", "study=s", "search.max_runs=10"]
    assert critical(*words, "data_seed=2011") == 0
    assert critical(*words) == 2
    assert "data_seed null differs from 2011" in capsys.readouterr().err


def test_a_refused_search_keeps_no_settings(
    searched: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in a new study nor over those of a search."""
    study = Path(shutil.copytree(searched, here / "results/s"))
    before = (study / FILE).read_bytes()
    with locks.hold_study(study, "another"):
        assert critical(*CELLS, "search.max_runs=40") == 2
        assert critical(*CELLS, "search.max_runs=40", "hydra/launcher=basic") == 2
    with locks.hold_study(here / "results/new", "another"):
        assert critical(*CELLS, "study=new") == 2
    monkeypatch.setenv("PATH", str(here))  # without Slurm
    assert critical(*CELLS, "study=new", "execution=slurm") == 2
    assert critical(*CELLS, "search.max_runs=40", "execution=slurm") == 2
    assert (study / FILE).read_bytes() == before
    assert not (here / "results/new" / FILE).exists()
    errors = capsys.readouterr().err.splitlines()
    assert [" is in use by " in line for line in errors] == [True, True, True, False, False], errors


def test_a_search_without_a_finished_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no answer yet, and other settings may still replace its own."""
    config = handmade_config(here)
    write_handmade_run(here / "s", config, "running")
    settings = Settings("peak_lr", 1e-3, 1.0)
    keep(here / "s", settings)
    assert critical_values(here / "s")[0].empty
    assert normstudy.Study(here / "s").critical().empty
    assert main(["report", "s"]) == 0
    for low in (1e-3, 1e-2):
        keep(here / "t", settings._replace(low=low))
    with pytest.raises(ConfigError, match=r"search\.low 0\.01 differs from 0\.001"):
        keep(here / "s", settings._replace(low=1e-2))
    assert "Traceback" not in capsys.readouterr().err


def test_damaged_settings_are_one_line_everywhere(
    searched: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(shutil.copytree(searched, here / "results/s"))
    (study / FILE).write_bytes(b"\xff\xfe")
    for words in (["plot", "results/s"], ["report", "results/s"], ["critical", *TINY, *CELLS]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: results/s/{FILE} does not hold the settings of a search: restore "), err
        assert err.count("\n") == 1
    found = check_study(study)
    assert not found.sound
    assert f"{FILE}: does not hold the settings of a search: restore" in found.text


def test_runs_that_crash_for_good_count_as_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An own block raises for some runs. They are tried until max_tries, and the other runs give the answer."""
    (here / "blocks.py").write_text(
        BLOCK.replace(
            "):\n",
            "):\n    import os\n    if os.path.exists('crash') and open('crash').read() != str(os.getpid()):\n"
            "        raise ValueError('no')\n",
        )
    )
    words = ["model.placement=blocks:f", "study=own", "model.n_layers=1", "search.max_runs=10", "execution.max_tries=1"]
    assert critical(*words) == 0
    whole = critical_values(here / "results/own")[0]
    run_id = min(tables.statuses(here / "results/own"))
    for path in (here / "results/own/tables").glob(f"*/{run_id}*"):
        path.unlink()
    (here / "crash").write_text(str(os.getpid()))  # the plan, which tries the block, is made in this process
    assert critical(*words, "execution.max_tries=2") == 1
    found = critical_values(here / "results/own")[0]
    crashed = list(tables.statuses(here / "results/own").values()).count(
        "failed"
    )  # it, and those of another next round
    assert list(found["crashed"]) == [crashed, crashed]
    assert list(found["runs"]) == [n - 1 for n in whole["runs"]]
    assert f"{crashed} crashed" in capsys.readouterr().out
    (here / "crash").unlink()
    (here / "blocks.py").write_text(BLOCK + "# changed\n")
    assert critical(*words) == 0
    found = critical_values(here / "results/own")[0]
    printed = capsys.readouterr().out
    assert len(found) == 4
    assert all(name in printed for name in found["placement"])


def test_a_dry_run_says_what_to_expect_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert critical(*CELLS, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "2 cells, peak_lr from 0.001 to 10; the first round has 8 runs, of which 0 are finished" in out
    assert re.search(r"expected: about \d+ runs \(\d+ per cell\).* needs about \d+ runs \(\d+ per cell\)", out)
    assert list(here.iterdir()) == []


@pytest.mark.packages
def test_another_launcher_a_text_and_a_block_of_one_s_own(here: Path) -> None:
    """Joblib trains the rounds, one run a process, to the tables of our launcher. Its processes find text and block.

    They also train a search's default number of steps.
    """
    (here / "mine.txt").write_bytes(Path(__file__).read_bytes() * 8)
    for name, text in {
        "own_pkg/blocks.py": "from own_pkg.helper import f\n",
        "own_pkg/helper.py": BLOCK,
        "own/experiment/mine.yaml": "# @package _global_\nstudy: 1.10\n",  # which a process could read as 1.1
    }.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    words = ["--config-dir", "own", "experiment=mine", "model.n_layers=1", "model.placement=own_pkg.blocks:f"]
    words += ["search.max_runs=10", "data=file", "data.path=mine.txt"]
    theirs = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "results_dir=theirs"]
    # In a new process, since the joblib workers of this one may have another working directory.
    default = ["critical", *(word for word in TINY if word != "schedule.n_steps=30")]
    done = finish([*default, *words, *theirs], here)
    assert done.returncode == 0, done.stderr
    assert main([*default, *words]) == 0
    assert_same_tables(here / "results/1.10", here / "theirs/1.10")
    assert set(tables.read(here / "theirs/1.10", "runs")["n_steps"]) == {300}
    sha256 = tables.read(here / "theirs/1.10", "runs")["placement_sha256"]
    assert set(sha256) == {sources.source_sha256("own_pkg.blocks:f")}
    assert not list(here.rglob("__pycache__"))


@pytest.mark.parametrize(("of", "high", "least"), [("warmup_steps", "null", 0), ("n_layers", "3", 1)])
def test_whole_numbers_are_searched_too(of: str, high: str, least: int, here: Path) -> None:
    """The default range of a warmup ends with the run. Seeds are unique, although values are few."""
    words = ["--of", of, "search.low=null", f"search.high={high}", "search.max_runs=10", "schedule.peak_lr=0.05"]
    assert critical(*words, f"study={of}") == 0
    runs = pd.read_parquet(here / "results" / of / "tables/runs")
    assert set(runs[of]) <= {*range(least, 31 if high == "null" else 4)}
    assert runs["seed"].is_unique
    found, settings = critical_values(here / "results" / of)
    assert (settings.low, settings.high) == (least, 30 if high == "null" else 3)
    assert set(found["of"]) == {of}
