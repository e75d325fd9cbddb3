"""Read and download texts, turn them into tokens, blocks and training batches, and compute their entropies."""
