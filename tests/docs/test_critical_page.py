"""The table of docs/critical.md is that of the stored simulations, which meet what the page claims."""

from __future__ import annotations

import re

import pandas as pd
from pages import ROOT, block, page

from normstudy.analysis.grid import markdown_table
from normstudy.bench.speed import GRID
from normstudy.bench.subjects import NORMSTUDY
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


def goals() -> list[str]:
    """The goals of a search, what was measured, and whether it meets the goal."""
    frame = stored()
    kind = {name: frame[frame["kind"] == name] for name in ("edge", "band", "end")}
    plain = kind["edge"][kind["edge"]["lapse"] == 0]
    narrow, wide = (kind["edge"][(kind["edge"]["width"] < 0.2) == below] for below in (True, False))
    plain = plain[plain["width"] < 0.2].set_index("width")
    midpoint, by_posterior = (plain[grid] / plain["runs"] for grid in ("grid_midpoint", "grid_posterior"))
    timed = pd.read_parquet(ROOT / "results" / "bench" / "xeon-avx512" / "j.parquet")
    timed = timed[timed["metric"] == "seconds"].pivot_table(index="round", columns="subject", values="value")
    seconds = timed[GRID] / timed[NORMSTUDY]
    assert midpoint.notna().tolist() == [True, False, False]
    covered, told = 100 * kind["edge"].groupby("width")["coverage"].min(), 100 * narrow["told"].max()
    rows = [
        ("runs of a grid, read at its midpoint / of a search", "at least 3",
         f"{midpoint.iloc[0]:.3g} at width 0.03; at 0.08 and 0.15 no simulated grid is as accurate",
         midpoint.iloc[0] >= 3),
        ("runs of a grid, read by the same posterior / of a search", "at least 2",
         f"{by_posterior.min():.3g} to {by_posterior.max():.3g}", by_posterior.min() >= 2),
        ("seconds of such a grid in one plain loop per core / of a search", "at least 3",
         f"{seconds.median():.3g} [{seconds.min():.3g}, {seconds.max():.3g}]", seconds.median() >= 3),
        ("coverage up to width 0.15", "at least 92 %", f"{covered[covered.index < 0.2].min():.1f} %",
         narrow["coverage"].min() >= 0.92),
        ("coverage at width 0.25", "at least 90 %", f"{covered[0.25]:.1f} %", wide["coverage"].min() >= 0.9),
        ("bias of an edge", "at most 0.02 decades", f"{kind['edge']['bias'].abs().max():.3f}",
         kind["edge"]["bias"].abs().max() <= 0.02),
        ("a band is told", "at least 90 %", f"{100 * kind['band']['told'].min():.1f} %",
         kind["band"]["told"].min() >= 0.9),
        ("a band is told, but there is none, up to width 0.15", "at most 5 %", f"{told:.1f} %", told <= 5),
        ("the same at width 0.25", "at most 5 %", f"{100 * wide['told'].max():.1f} %", wide["told"].max() <= 0.05),
        ("runs if the edge is the end of the range", "at most 40", f"{kind['end']['runs'].max():.0f}",
         kind["end"]["runs"].max() <= 40),
        ("seconds to choose the sixth round of 100 cells", "at most 0.2", f"{frame['seconds_100_cells'].max():.2f}",
         frame["seconds_100_cells"].max() <= 0.2),
    ]  # fmt: skip
    cells = [[what, goal, measured, "met" if met else "not met"] for what, goal, measured, met in rows]
    return markdown_table(["what", "goal", "measured", "verdict"], cells, (), compact=True)


def test_the_page_says_which_goals_are_met() -> None:
    assert block(TEXT, "goals").splitlines() == goals()


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
