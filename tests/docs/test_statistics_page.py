"""docs/statistics.md: the table of the simulation, the runs that the studies share, and the numbers in the text."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from pages import ROOT, block, missing, page

from normstudy.analysis.grid import markdown_table
from normstudy.analysis.inference import share_test

TEXT = page("docs/statistics.md")


def test_the_simulation_is_the_stored_one() -> None:
    stored = pd.read_parquet(ROOT / "results" / "robustness" / "coverage.parquet")
    alike = (stored["losses"] == "normal") & (stored["baseline_stuck"] == stored["stuck"])
    rows = [
        [str(quantity), str(seeds), *cells(found)]
        for (quantity, seeds), found in stored[alike].groupby(["quantity", "seeds"], sort=False)
    ]
    header = ["", "seeds", *(f"{100 * p:.0f} % stuck" for p in stored["stuck"].unique())]
    assert block(TEXT, "coverage").splitlines() == markdown_table(header, rows, range(1, len(header)))
    setting = ["losses", "baseline_stuck", "stuck"]
    rows = [
        [str(shape), *(f"{100 * p:.0f} %" for p in stuck), *cells(found)]
        for (shape, *stuck), found in stored[~alike].groupby(setting, sort=False)
    ]
    header = ["losses", "stuck in the baseline", "in the arm", "5 seeds", "10 seeds", "20 seeds"]
    assert block(TEXT, "unlike").splitlines() == markdown_table(header, rows, range(1, len(header)))


def cells(found: pd.DataFrame) -> list[str]:
    return [f"{100 * r.share:.1f} % of {r.printed:,}" if r.printed else "none printed" for r in found.itertuples()]


def losses(study: str) -> dict[tuple[float, ...], str]:
    """The losses of every step of each run -> its run id."""
    steps = pd.read_parquet(ROOT / "results" / study / "tables" / "steps", columns=["run_id", "train_loss"])
    return {tuple(rows): str(run_id) for run_id, rows in steps.groupby("run_id", observed=True)["train_loss"]}


def test_the_runs_that_studies_share_are_found_by_their_losses() -> None:
    found = {study: losses(study) for study in ("warmup", "peak_lr", "depth", "shallow", "boundary", "best")}
    shared = {
        (a, b): len(found[a].keys() & found[b].keys()) for a, b in itertools.combinations(found, 2)
    }  # fmt: skip
    assert {pair: n for pair, n in shared.items() if n} == {("warmup", "peak_lr"): 40, ("warmup", "depth"): 20,
                                                            ("peak_lr", "depth"): 20}  # fmt: skip
    said = "all 40 runs of `warmup` are in `peak_lr`, and 20 of them are in `depth`"
    assert missing(TEXT, [said]) == []
    ids = {found["warmup"][key] for key in found["warmup"].keys() & found["peak_lr"].keys()}
    assert not ids & set(found["peak_lr"].values())  # under other run ids


def test_the_least_p_of_five_runs_in_each_arm() -> None:
    assert share_test(5, 5, 0, 5) == pytest.approx(2 / 252)
    assert missing(TEXT, [f"2 / 252 = {2 / 252:.3f}", f"2 / 2^5 = {2 / 2**5:.4f}"]) == []
    assert 26 * 2 / 252 > 0.05
