"""The table of docs/critical.md is that of the stored simulations, which meet what the page claims."""

from __future__ import annotations

import re

import pandas as pd
from pages import ROOT, block, page

from normstudy.analysis.grid import markdown_table
from normstudy.search.posterior import LAPSES, PAD, WIDTHS
from normstudy.search.rounds import REPEATS, ROUND, SENTINELS

TEXT = page("docs/critical.md")
HEADER = [
    "simulated",
    "width",
    "lapse",
    "runs",
    "error",
    "bias",
    "coverage",
    "told",
    "grid, midpoint",
    "grid, posterior",
]


def stored() -> pd.DataFrame:
    return pd.read_parquet(ROOT / "results" / "robustness" / "critical.parquet")


def table(frame: pd.DataFrame) -> list[str]:
    rows = []
    for r in frame.to_dict("records"):
        grids = ["" if pd.isna(n) else f"{n:.0f}" for n in (r["grid_midpoint"], r["grid_posterior"])]
        if r["kind"] == "edge" and not r["lapse"]:
            grids = [n or "none" for n in grids]
        numbers = [
            f"{r['width']:g}",
            f"{100 * r['lapse']:g} %",
            f"{r['runs']:.0f}",
            f"{r['rms']:.3f}",
            f"{r['bias']:+.3f}",
        ]
        rows.append([r["kind"], *numbers, f"{100 * r['coverage']:.1f} %", f"{100 * r['told']:.1f} %", *grids])
    return markdown_table(HEADER, rows, range(1, len(HEADER)), compact=True)


def test_the_page_shows_the_table() -> None:
    assert block(TEXT, "simulated").splitlines() == table(stored())
    assert f"{stored()['seconds_100_cells'].iloc[0]:.2f} s" in TEXT


def test_what_the_simulations_must_show() -> None:
    frame = stored()
    edge = frame[frame["kind"] == "edge"]
    assert (frame["seconds_100_cells"] <= 0.2).all()
    assert (edge["searches"] >= 2000).all()
    assert (edge.loc[edge["width"] < 0.2, "coverage"] >= 0.92).all()
    assert (edge["coverage"] >= 0.9).all()
    assert (edge["bias"].abs() <= 0.02).all()
    assert (edge.loc[edge["width"] < 0.2, "told"] <= 0.05).all()
    assert (frame.loc[frame["kind"] == "band", "told"] >= 0.9).all()
    assert (frame.loc[frame["kind"] == "end", "runs"] <= 40).all()
    plain = edge[(edge["lapse"] == 0) & (edge["width"] < 0.2)]
    assert (plain["grid_posterior"].fillna(1e9) >= 2 * plain["runs"]).all()
    assert (plain["grid_midpoint"].fillna(1e9) >= 3 * plain["runs"]).all()


def test_its_words_have_the_numbers_of_the_code() -> None:
    words = re.sub(r"\s+", " ", TEXT)
    *first, last = (f"{width:g}" for width in WIDTHS)
    assert f"The width s is {', '.join(first)} or {last} decades" in words
    assert f"the lapse l {' or '.join(f'{100 * lapse:g} %' for lapse in LAPSES)}," in words
    assert f"{PAD / 100:g} decades beyond each end" in words
    assert (ROUND, SENTINELS, REPEATS) == (4, 6, 2)
    assert all(phrase in words for phrase in ("A round has four runs", "Six sentinels", "is repeated twice"))
