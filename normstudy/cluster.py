"""`python -m normstudy.cluster`: the start of every Slurm job that an older version of normstudy submitted.

Such a job holds classes of that version and cannot train. It ends here, without a crash recorded for any run; the
sweep's command submits its runs again.
"""

import sys

if __name__ == "__main__":
    message = "this job was submitted by an older version of normstudy: give the sweep's command again"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
