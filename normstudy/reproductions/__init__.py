"""Predictions of papers and claims of the starting text, held against measurements."""
