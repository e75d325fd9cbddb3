"""A door to the installed package: `python scripts/bench.py ...` is `normstudy bench ...`."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
