"""Stop a Slurm job of an older version of normstudy. This version cannot unpickle the older version's classes."""

import sys

if __name__ == "__main__":
    print("error: an older version of normstudy submitted this job: rerun the sweep's command", file=sys.stderr)
    sys.exit(2)
