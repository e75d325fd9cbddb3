"""`python scripts/reproduce.py ...` is `normstudy reproduce ...` of the installed package."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
