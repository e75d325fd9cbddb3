"""Stop Slurm jobs of older versions, which start with this module. This version cannot unpickle their classes."""

import sys

if __name__ == "__main__":
    print("error: an older version of normstudy submitted this job: rerun the sweep's command", file=sys.stderr)
    sys.exit(2)
