"""`python scripts/plot.py ...` is `normstudy plot ...` of the installed package."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["plot", *sys.argv[1:]]))
