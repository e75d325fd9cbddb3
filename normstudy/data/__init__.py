"""Turn texts into tokens, blocks and training batches, and compute their entropies."""
