"""Many runs trained as one program: batches of runs, one step, optimizers and probes."""
