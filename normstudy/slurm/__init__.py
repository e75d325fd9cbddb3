"""Sweeps as jobs of Slurm: asking Slurm, submitting jobs, and the share of a sweep that one job trains."""
