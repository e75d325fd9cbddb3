"""Summarize a study's tables as small ones: outcomes, pairs, comparisons, selections."""
