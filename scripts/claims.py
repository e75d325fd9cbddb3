"""Print the table of docs/claims.md, computed from the committed studies: `python scripts/claims.py [RESULTS]`."""

import sys
from pathlib import Path

from normstudy.errors import ConfigError
from normstudy.reproductions.claims import findings, markdown

if __name__ == "__main__":
    try:
        print(markdown(findings(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))), end="")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
