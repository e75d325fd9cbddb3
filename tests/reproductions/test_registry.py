"""Tests that every reproduction must pass, including those added later."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from reduced import REDUCED, measured

from normstudy.figures import style
from normstudy.reproductions.entry import Sizes, model_config
from normstudy.reproductions.measure import MEASUREMENTS
from normstudy.reproductions.run import REPRODUCTIONS
from normstudy.reproductions.verdicts import INCONCLUSIVE, MEASURED, NOT_SUPPORTED, SUPPORTED

VERDICTS = {SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, MEASURED}
TIER0 = (
    "xiong-theorem1-pre", "xiong-theorem1-post", "gpt2-init-control", "xiong-lemma2-post", "xiong-lemma2-pre",
    "xiong-profile-pre", "xiong-profile-post", "rmsnorm-equals-layernorm", "admin-output-change", "deepnet-constants",
    "deepnet-update", "peri-variance", "lns-variance", "mixln-balance", "reordered-needs-qknorm",
)  # fmt: skip

every = pytest.mark.parametrize("name", REPRODUCTIONS)


def test_tier_0_is_whole() -> None:
    assert tuple(REPRODUCTIONS) == TIER0


@every
def test_its_file_says_what_a_reader_needs(name: str) -> None:
    module = importlib.import_module(f"normstudy.reproductions.predictions.{name.replace('-', '_')}")
    entry = REPRODUCTIONS[name]
    assert module.ENTRY is entry
    text = module.__doc__ or ""
    for part in ("Source: ", "Computed: ", "Band: "):
        assert f"\n\n{part}" in text
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert re.search(r"arXiv:\d{4}\.\d{5}", entry.source)
    assert re.search(r"theorem|lemma|table|section|equation", entry.source)
    assert len(entry.prediction.splitlines()) == 1
    text = " ".join(text.split())
    if "Band: none" not in text:
        assert "Verdict: by the rule in verdicts.py" in text or "Verdict: supported when" in text


@every
def test_its_needs_can_be_measured(name: str) -> None:
    for sizes in (Sizes(), REDUCED):
        for need in REPRODUCTIONS[name].needs(sizes):
            assert need.kind in MEASUREMENTS
            assert need.seeds >= 1
            assert set(need.depths) <= set(sizes.depths)
            for depth in need.depths:
                config = model_config(need.variant, depth, sizes)
                assert not config.biases
                assert config.unembed_std == pytest.approx(sizes.d_model**-0.5)


@every
def test_its_findings_follow_from_its_table(name: str) -> None:
    table = measured()[name]
    before = table.copy()
    found = REPRODUCTIONS[name].findings(table)
    assert found
    assert table.equals(before)
    assert found == REPRODUCTIONS[name].findings(table.sample(frac=1, random_state=1))  # rows in any order
    text = importlib.import_module(f"normstudy.reproductions.predictions.{name.replace('-', '_')}").__doc__ or ""
    assert all(f.band is None for f in found) == ("Band: none" in text)
    for f in found:
        assert f.verdict in VERDICTS
        assert (f.verdict == MEASURED) == (f.band is None)
        assert np.isfinite(f.value)
        assert f.low <= f.value <= f.high or (f.exact and np.isnan(f.low))
        if f.band is not None:
            assert not np.isnan([f.band.low, f.band.high]).any()
            assert np.isfinite([f.band.low, f.band.high]).any()
            assert f.band.low <= f.band.high
            assert f.source_text


@every
def test_its_figure_is_drawn_and_names_the_verdicts(name: str) -> None:
    table = measured()[name]
    found = REPRODUCTIONS[name].findings(table)
    with style.rc():
        fig = REPRODUCTIONS[name].draw(table, found)
    assert isinstance(fig, Figure)
    title = fig.get_suptitle()
    assert sum(title.count(f": {verdict}") for verdict in VERDICTS) == len(found)
    assert all(ax.has_data() for ax in fig.axes)
    assert all(ax.get_ylabel() for ax in fig.axes[:1])
    assert all(ax.get_xlabel() or ax.get_xticklabels() for ax in fig.axes)
    for ax in fig.axes:
        for line in [line for line in ax.get_lines() if line.get_linestyle() == "None"]:
            x, ticks = np.asarray(line.get_xdata(), float), ax.get_xticks()
            if line.get_marker() == ".":  # single seeds lie a little beside their depth
                away = np.abs(np.log(x[:, None] / ticks)).min(1)
                assert away.max() <= 0.04 * np.diff(np.log(ticks)).min()
            else:
                assert np.isin(x, ticks).all()
