"""`python -m normstudy` is the `normstudy` command."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
