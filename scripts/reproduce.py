"""A door to the installed package: `python scripts/reproduce.py ...` is `normstudy reproduce ...`."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
