"""The page for contributors says of each dependency why it is there, and pyproject.toml from which version on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENT = re.compile(r"([a-z0-9-]+)(\[.*\])?(.*)")


def requirements() -> dict[str, tuple[str, str]]:
    """Name -> (extra, range) of every dependency; the extra is empty for what is always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {}
    for extra, lines in lists.items():
        for line in lines:
            parts = REQUIREMENT.fullmatch(line)
            assert parts is not None
            if parts[1] != project["name"]:
                found[parts[1]] = (extra, parts[3])
    return found


def test_each_dependency_has_its_line() -> None:
    section = (ROOT / ".github" / "CONTRIBUTING.md").read_text().partition("## Dependencies\n")[2]
    told = {}
    for names, extra, reason in re.findall(r"^- ((?:`[a-z0-9-]+`(?:, )?)+)(?: \((\w+)\))?: (.+)$", section, re.M):
        assert len(reason) > 10
        told |= dict.fromkeys(re.findall(r"`([a-z0-9-]+)`", names), extra)
    assert told == {name: extra for name, (extra, _) in requirements().items()}


def test_each_dependency_has_a_range() -> None:
    assert [name for name, (_, versions) in requirements().items() if ">=" not in versions] == []
