"""Measure the early warning on the committed studies: `python scripts/early_warning.py`, from the repository's root.

Writes the table and the figure in results/robustness/, the tables in docs/early_warning.md, and the rule that
`normstudy status` reads, normstudy/analysis/early_warning.json.
"""

import json
import sys
from pathlib import Path

from normstudy.analysis import early_warning
from normstudy.errors import ConfigError
from normstudy.figures import curves

RESULTS, PAGE = Path("results"), Path("docs/early_warning.md")
TABLES = {"quantities": False, "missed": True}  # name of the markers in the page -> how markdown is called

if __name__ == "__main__":
    try:
        kinds = {kind: [RESULTS / name for name in names] for kind, names in early_warning.STUDIES.items()}
        table = early_warning.measure(kinds)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    table.to_parquet(RESULTS / "robustness" / "early_warning.parquet", index=False)
    curves.early_warning(table, RESULTS / "robustness" / "early_warning.png")
    page = PAGE.read_text()
    for name, missed in TABLES.items():
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, *after = rest.partition(f"<!-- /{name} -->\n")
        page = before + begin + early_warning.markdown(table, missed) + "".join(after)
    PAGE.write_text(page)
    rule = Path(early_warning.__file__).with_name("early_warning.json")
    rule.write_text(json.dumps(early_warning.rule_of(table)) + "\n")
