"""Define the predictions of papers, one per file."""
