"""Train runs in worker processes, record their results, and write checkpoints."""
