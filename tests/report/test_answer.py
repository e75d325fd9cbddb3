"""The sentences of a page say what `compare` prints, with its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from handmade import handmade_study

from normstudy.analysis import grid
from normstudy.analysis.compare import compare_study
from normstudy.report.answer import Answer, answers, sentence
from normstudy.report.read import read

RESULTS = Path(__file__).parents[2] / "results"


def said(study: str, by: str) -> Answer:
    return next(answer for answer in answers(read([RESULTS / study])) if answer.by == by)


def test_the_answer_about_warmup() -> None:
    found = said("warmup", "warmup_steps")
    assert found.sentences[1] == (
        "post-norm, lr 3e-3, without warmup: 5 of 5 stuck [48, 100 %]; with 100 steps: 4 of 5 learn [28, 99 %], none "
        "fails; the shares differ (p 0.024, family 4)."
    )
    assert found.sentences[2] == (
        "pre-norm, lr 1e-3, without warmup: 5 of 5 learn [48, 100 %]; with 100 steps: 5 of 5 learn [48, 100 %]; loss "
        "+0.028 [+0.014, +0.043] in 5 pairs (higher, p 0.023, family 4)."
    )
    assert found.summary == "4 comparisons; the shares of failed runs differ in 1, the losses in 1"


@pytest.mark.parametrize("study", ["warmup", "boundary", "placements"])
def test_sentences_and_tables_are_those_of_compare(study: str) -> None:
    for answer in answers(read([RESULTS / study])):
        table = compare_study(RESULTS / study, by=answer.by)
        assert len(answer.sentences) == len(table)
        for row, line in zip(table.to_dict("records"), answer.sentences, strict=True):
            for arm in ("", "baseline_"):
                if row[f"{arm}failed"]:
                    low, high = (100 * row[f"{arm}failed_{end}"] for end in ("low", "high"))
                    assert re.search(
                        rf"{row[f'{arm}failed']} of {row[f'{arm}runs']} \w+ \[{low:.0f}, {high:.0f} %\]", line
                    )
            assert ("the shares differ" in line) == row["failed_verdict"].startswith("fails ")
            assert ("lower, p" in line) == (row["loss_verdict"] == "lower")


def row_of(**changes: object) -> dict[str, object]:
    table = compare_study(RESULTS / "warmup", by="warmup_steps")
    return {**table.iloc[1].to_dict(), **changes}


def test_what_cannot_be_tested_is_said() -> None:
    none = {"failed_p": float("nan"), "failed_holm": float("nan"), "loss_holm": float("nan")}
    line = sentence(row_of(**none, runs=0), pd.DataFrame(columns=["by"]), {})
    assert line.endswith("with 100 steps: no runs with an outcome; no test: all ended alike, or the seeds are too few.")


def test_one_run_learns_and_some_learn(tmp_path: Path) -> None:
    bundle = read([handmade_study(tmp_path, n_layers=(4,), peak_lrs=(3e-3,))])
    lines = next(answer for answer in answers(bundle) if answer.by == "placement").sentences
    assert "post-norm: 2 of 2 failed [16, 100 %]" in lines[0]


@pytest.mark.parametrize(("column", "value", "phrase"), [
    ("placement", "pre", "pre-norm"), ("placement", "own.blocks:mine", "mine"), ("n_layers", 1, "1 layer"),
    ("n_layers", 12, "12 layers"), ("peak_lr", 0.003, "lr 3e-3"), ("warmup_steps", 0, "no warmup"),
    ("warmup_steps", 100, "warmup 100"), ("d_ff", None, "d_ff=null"), ("tied", True, "tied=true"),
    ("seed", 3, "seed 3"),
    ("data_sha256", "5" * 64, "text 55555555"), ("data", "pydoc", "text pydoc"),
])  # fmt: skip
def test_words_of_a_value(column: str, value: str | int | float | bool | None, phrase: str) -> None:
    assert grid.title({column: value}, {"own.blocks:mine": "mine"}) == phrase
