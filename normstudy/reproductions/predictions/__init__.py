"""The predictions of papers, one per file."""
