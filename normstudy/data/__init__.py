"""From a text to tokens, blocks and batches, and the text's entropies."""
