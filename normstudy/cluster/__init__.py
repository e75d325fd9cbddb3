"""Sweeps as jobs of Slurm: options.py, slurm.py (asking it), arrays.py (what there is), submit.py, job.py, watch.py.

submitit is imported only where jobs are submitted, and in them. It hands functions over as pickles, in state/slurm,
which only their user may enter; they go when the jobs are over. No others are ever read or written.
"""
