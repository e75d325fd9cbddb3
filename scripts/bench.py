"""`python scripts/bench.py ...` is `normstudy bench ...` of the installed package."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
