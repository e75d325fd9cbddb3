"""docs/early_warning.md, and the rule that the package ships, are those of the committed table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from pages import ROOT, block, missing, page

from normstudy.analysis import early_warning, likely_stuck
from normstudy.analysis.grid import interval_text

TEXT = page("docs/early_warning.md")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_parquet(ROOT / "results" / "robustness" / "early_warning.parquet")


@pytest.mark.parametrize(("name", "missed"), [("quantities", False), ("missed", True)])
def test_the_page_shows_the_table(name: str, missed: bool, table: pd.DataFrame) -> None:
    assert block(TEXT, name) == early_warning.markdown(table, missed).strip()


def test_the_shipped_rule_is_that_of_the_table(table: pd.DataFrame) -> None:
    stored = Path(likely_stuck.__file__).with_name("early_warning.json").read_text()
    assert stored == json.dumps(early_warning.rule_of(table)) + "\n"
    assert likely_stuck.rule()._asdict() == early_warning.rule_of(table)
    assert missing(TEXT, [likely_stuck.text_of(3)]) == []


def test_its_words_have_the_numbers_of_the_table(table: pd.DataFrame) -> None:
    every = table[table["placement"] == "all"].set_index(["kind", "step", "quantity"])
    of_all = every.loc["grids"]

    def value(step: int, quantity: str, kind: str = "grids") -> str:
        return interval_text(*every.loc[(kind, step, quantity), ["auc", "low", "high"]], ".3f")

    ratio, loss = ({step: value(step, q) for step in (24, 100, 200)} for q in ("gradient_ratio", "train_loss"))
    phrases = [
        f"gradient ratio has an AUC of {ratio[24]}, and the training loss of {loss[24]}",
        f"At step 100 these are {ratio[100]} and {loss[100]}",
        f"the loss tells as much as the gradient: {loss[200]} and {ratio[200]}",
        f"At step 100 the gradient ratio has an AUC of {value(100, 'gradient_ratio', 'searches')}, the update's RMS of "
        f"{value(100, 'update_rms', 'searches')} and the training loss of {value(100, 'train_loss', 'searches')}. "
        f"At step 0 the ratio has {value(0, 'gradient_ratio', 'searches')} and the loss "
        f"{value(0, 'train_loss', 'searches')}",
    ]
    assert missing(TEXT, phrases) == []
    table = table[table["kind"] == "grids"]
    placements = table[(table["step"] == 24) & (table["quantity"] == "gradient_ratio") & (table["stuck"] > 0)]
    assert set(placements["placement"]) == {"all", "post"}
    start = of_all.loc[0]
    assert [start.loc[q, "low"] < 0.5 < start.loc[q, "high"] for q in start.index] == [True, False, True]
    mix = table[(table["placement"] == "mix") & (table["quantity"] == "gradient_ratio") & (table["step"] >= 100)]
    assert mix[["caught", "stuck"]].to_numpy().tolist() == [[0, 3], [0, 3]]
