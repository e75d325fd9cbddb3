"""Runs trained in worker processes: the pool, the worker, recording and checkpoints."""
