"""Run sweeps as Slurm jobs: query Slurm, submit the jobs, and train each job's share of a sweep."""
