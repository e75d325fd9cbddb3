"""Search for critical values: which runs to train next, and where half of the runs fail. Nothing here trains."""
