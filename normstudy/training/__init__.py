"""Train many runs as one program: batches of runs, their steps, optimizers and probes."""
