"""`python scripts/compare.py ...` is `normstudy compare ...` of the installed package."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
