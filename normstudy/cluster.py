"""End a Slurm job that was submitted by an older version of normstudy and runs `python -m normstudy.cluster`.

The job contains pickled classes of the older version, so it cannot train. It ends here, before a crash is recorded for
any run. Rerunning the sweep's command submits the runs again.
"""

import sys

if __name__ == "__main__":
    print("error: an older version of normstudy submitted this job: rerun the sweep's command", file=sys.stderr)
    sys.exit(2)
