"""docs/placements.md lists every placement with what it brings, every value of a model's keys, and what learned."""

from __future__ import annotations

import re

import pytest
from pages import ROOT, page, words

import normstudy
from normstudy import config
from normstudy.placements import PLACEMENTS

PAGE = page("docs/placements.md")
KEYS = {
    "norm": config.NORM_NAMES,
    "qk_norm": config.QK_NORM_NAMES,
    "init": config.INIT_NAMES,
    "embed_init": config.EMBED_INIT_NAMES,
    "activation": config.ACTIVATION_NAMES,
    "positions": config.POSITION_NAMES,
    "first_block": config.FIRST_BLOCK_NAMES,
}


def test_every_placement_has_its_line() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*?) ?\| .* \|$", PAGE, re.M)
    brings = dict(rows)
    assert [name for name, _ in rows] == list(PLACEMENTS)
    for name, row in PLACEMENTS.items():
        assert ("final norm" in brings[name]) == row.final_norm, name
        assert ("init" in brings[name].split(",")[-1].split()) == (row.init != "xavier"), name
        assert ("no norms" in brings[name]) == (row.norms == ("none",)), name
        assert ("profiling" in brings[name]) == row.profiled, name
        assert ("QK-norm" in brings[name]) == (row.qk_norm == "full"), name


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_a_key_is_listed(key: str) -> None:
    cells = re.search(rf"^\| `model.{key}` \| (.*) \|$", PAGE, re.M)
    assert cells is not None
    assert sorted(set(re.findall(r"`(\w+)`", cells[1])) - {"hybrid"}) == sorted(KEYS[key])


def test_every_preset_is_listed() -> None:
    recipes = PAGE[PAGE.index("`model=`") :]
    for path in (ROOT / "conf" / "model").glob("*.yaml"):
        assert f"`{path.stem}`" in recipes, path.stem


def test_what_learned_is_what_the_tables_say() -> None:
    runs = normstudy.load(ROOT / "results" / "placements").runs.query("n_layers == 12")
    outcomes = runs.groupby(["placement", "warmup_steps"])["outcome"].agg(list)
    learned = {steps: {p for p in PLACEMENTS if outcomes[p, steps] == ["learned"] * 5} for steps in (0, 100)}
    stuck = {p for p in PLACEMENTS if outcomes[p, 100] == ["stuck"] * 5}
    assert len(learned[0]) == 9
    assert learned[100] - learned[0] == {"admin", "b2t", "mix"}
    assert stuck == {"post", "hybrid"}
    assert "nine of the fourteen learn for all five seeds" in words(PAGE)
    assert "`admin`, `b2t` and `mix` learn with a warmup of 100 steps; `post` and `hybrid` stay stuck" in words(PAGE)
