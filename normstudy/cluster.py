"""Slurm jobs that were submitted by an older version of normstudy run `python -m normstudy.cluster`.

Such a job contains pickled classes of that version and cannot train. This module ends the job before a crash is
recorded for any run; rerunning the sweep's command submits the job's runs again.
"""

import sys

if __name__ == "__main__":
    message = "this job was submitted by an older version of normstudy: give the sweep's command again"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
