"""`python scripts/sweep.py ...` is `normstudy sweep ...` of the installed package."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
