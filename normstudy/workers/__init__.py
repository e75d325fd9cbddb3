"""Train runs in worker processes: the pool, the worker, the recording of results, and checkpoints."""
