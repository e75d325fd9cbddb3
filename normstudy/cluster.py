"""End a Slurm job that an older version of normstudy submitted, before it fails to unpickle that version's classes."""

import sys

if __name__ == "__main__":
    print("error: an older version of normstudy submitted this job: rerun the sweep's command", file=sys.stderr)
    sys.exit(2)
