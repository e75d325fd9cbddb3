"""Texts: reading and downloading, tokens, blocks, training batches, and entropies."""
