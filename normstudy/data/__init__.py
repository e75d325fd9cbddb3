"""From a text to tokens, blocks and batches, and the entropies of the text."""
