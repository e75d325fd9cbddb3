"""Start a Slurm job: `python -u -m normstudy.slurm -u -m submitit.core._submit FOLDER`.

submitit appends `-u -m submitit.core._submit FOLDER` to the command. This module reads only FOLDER.
"""

import os
import signal
import sys
from pathlib import Path

from normstudy.workers.signals import WARNING


def main() -> None:
    """Run the job in FOLDER as `submitit.core._submit` would, but refuse a FOLDER that other users can access."""
    # Slurm's time-limit warning would kill the job during the imports. Block this signal; share.py unblocks it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {WARNING})
    from submitit.core.submission import submitit_main

    from normstudy.slurm import arrays

    sys.argv[1:] = sys.argv[-1:]
    arrays.check_own(Path(sys.argv[1]))
    if os.lstat(sys.argv[1]).st_mode & 0o077:
        sys.exit(f"{sys.argv[1]} is open to other users, who could replace the job's code: run chmod 700 {sys.argv[1]}")
    submitit_main()


if __name__ == "__main__":
    main()
