"""The pages as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "results").glob("**/README.md")),
]


def page(name: str) -> str:
    """The text of a page, named by its path in the repository."""
    return (ROOT / name).read_text()


def block(text: str, name: str) -> str:
    """What stands between the markers of a name, without the newlines around it."""
    between = re.search(rf"<!-- {name} -->\n(.*)<!-- /{name} -->", text, re.S)
    assert between is not None, f"no markers of {name}"
    return between[1].strip()


def words(text: str) -> str:
    """The text on one line, so that it does not matter where the page breaks its lines."""
    return " ".join(text.split())


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def missing(text: str, phrases: list[str]) -> list[str]:
    """The phrases that the text lacks."""
    return [phrase for phrase in phrases if phrase not in words(text)]
