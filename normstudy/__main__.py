"""Run the `normstudy` command as `python -m normstudy`."""

import sys

from normstudy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
