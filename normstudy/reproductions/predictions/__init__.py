"""One prediction of a paper per file."""
