"""Turn texts into tokens, blocks and training batches, and compute the entropies of texts."""
