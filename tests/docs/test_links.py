"""Every relative link of every page leads somewhere, and every file that a page names in its text exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT

FENCED = re.compile(r"```.*?```", re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:\.ci|\.github|conf|docs|experiments|normstudy|scripts|tests)/[\w./-]*)`")


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_resolves(path: Path) -> None:
    for target in LINK.findall(FENCED.sub("", path.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert ROOT in (there, *there.parents), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_it_names_exists(path: Path) -> None:
    """Names in backquotes. One with a placeholder in capitals, such as NAME.py, is no file."""
    for name in NAMED.findall(path.read_text()):
        if not re.search(r"\b[A-Z]{2,}\b(?!\.md)", name):
            assert (ROOT / name).exists(), name
