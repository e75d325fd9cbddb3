"""Pass the arguments of `normstudy run` and `normstudy sweep` to Hydra, and print completions for the shell."""

from __future__ import annotations

import os
from collections.abc import Sequence

from normstudy.errors import ConfigError

OUR_FLAGS = ("--dry-run", "--detach", "--retry-failed", "--no-retry-failed")  # unknown to Hydra's completion


def train(command: str, argv: list[str]) -> int:
    from normstudy.app import main

    return main.main(command, argv)


def complete(words: Sequence[str], commands: Sequence[str]) -> int:
    """Print the completions for `normstudy -sc query=SHELL`, or the setup script for `-sc install=SHELL`.

    The shell passes the typed line in COMP_LINE. Hydra has no subcommands, so the command is removed from that
    line. For other commands nothing is printed.
    """
    if len(words) != 1 or words[0].split("=")[0] not in ("query", "install", "uninstall"):
        raise ConfigError("-sc needs one word: install=bash, uninstall=bash or query=bash (zsh and fish work too)")
    if words[0].startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        program, *typed = line.split() or [""]
        if not typed or (len(typed) == 1 and not line.endswith(" ")):
            print(" ".join(c for c in commands if c.startswith("".join(typed))))
            return 0
        if typed[0] not in ("run", "sweep", "critical"):
            return 0
        many = [] if typed[0] == "run" else ["--multirun"]  # otherwise Hydra rejects comma-separated values
        kept = [word for word in typed[1:] if word not in OUR_FLAGS]
        blank = " " if line.endswith(" ") else ""
        os.environ["COMP_LINE"] = " ".join([program, *many, *kept]) + blank
    from normstudy.app import main

    main.complete(words[0])
    return 0
