"""Stop a Slurm job that an older version of normstudy submitted, because this version cannot unpickle its classes."""

import sys

if __name__ == "__main__":
    print("error: an older version of normstudy submitted this job: rerun the sweep's command", file=sys.stderr)
    sys.exit(2)
