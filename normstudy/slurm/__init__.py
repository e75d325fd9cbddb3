"""Sweeps as jobs of Slurm: questions to Slurm, the submission of jobs, and the share of a sweep that a job trains."""
