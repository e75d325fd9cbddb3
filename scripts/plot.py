"""A door to the installed package: `python scripts/plot.py ...` is `normstudy plot ...`."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["plot", *sys.argv[1:]]))
