"""Run the `normstudy` command as `python -m normstudy`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:  # `python -m` puts the working directory first, where a file would hide a library
        sys.path.append(sys.path.pop(0))
    from normstudy.cli.main import main

    sys.exit(main())
