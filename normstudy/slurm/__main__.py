"""What a job starts in the place of `python`: `python -m normstudy.slurm -u -m submitit.core._submit FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from normstudy.slurm import arrays
from normstudy.workers.signals import WARNING


def main() -> None:
    """Be that module of submitit."""
    # A warning that comes while modules are still being imported would end the job: job.py lets it in.
    signal.pthread_sigmask(signal.SIG_BLOCK, {WARNING})
    from submitit.core.submission import submitit_main

    sys.argv[1:] = sys.argv[-1:]
    arrays.check_own(Path(sys.argv[1]))
    if os.lstat(sys.argv[1]).st_mode & 0o077:
        sys.exit(f"{sys.argv[1]} is open to others: no pickle of it is read")
    submitit_main()


if __name__ == "__main__":
    main()
