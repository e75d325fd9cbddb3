"""Run the `normstudy` command as `python -m normstudy`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:  # `python -m` searches the working directory first: a file there could hide a library
        sys.path.append(sys.path.pop(0))
    from normstudy.cli.main import main

    sys.exit(main())
