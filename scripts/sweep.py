"""A door to the installed package: `python scripts/sweep.py ...` is `normstudy sweep ...`."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
