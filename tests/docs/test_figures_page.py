"""docs/figures.md has every figure with its question, and a committed picture of each that needs no search."""

from __future__ import annotations

import re

from pages import ROOT, page

from normstudy.figures.draw import FIGURES, OF_SEARCH

PAGE = page("docs/figures.md")


def test_every_figure_has_its_question() -> None:
    named = [
        name for cells in re.findall(r"^\| (`.+`) \| .+\? ?.*\|$", PAGE, re.M) for name in re.findall(r"`(\w+)`", cells)
    ]
    assert named == list(FIGURES)


def test_every_picture_is_there_and_drawn_by_the_command_above_it() -> None:
    shown = set()
    for study, names, pictures in re.findall(r"plot results/(\w+) --only ([\w,]+)\n```\n\n((?:!.+\n)+)", PAGE):
        paths = re.findall(r"\]\(\.\./results/(\w+)/figures/(\w+)\.png\)", pictures)
        assert paths == [(study, name) for name in names.split(",")]
        assert all((ROOT / "results" / study / "figures" / f"{name}.png").is_file() for study, name in paths)
        shown |= set(names.split(","))
    assert shown >= FIGURES.keys() - OF_SEARCH.keys()
