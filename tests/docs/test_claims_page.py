"""docs/claims.md shows the table that scripts/claims.py prints of the committed studies."""

from __future__ import annotations

from pages import ROOT, block, page

from normstudy.reproductions.claims import findings, markdown


def test_the_claims_are_those_of_the_tables() -> None:
    assert block(page("docs/claims.md"), "claims") == markdown(findings(ROOT / "results")).strip()
