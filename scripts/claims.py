"""Print the README's table of claims, computed from the committed studies: `python scripts/claims.py [RESULTS]`."""

import sys
from pathlib import Path

from normstudy.analysis.claims import findings, markdown

if __name__ == "__main__":
    print(markdown(findings(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))), end="")
