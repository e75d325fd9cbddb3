"""Search for critical values: which runs to train next, and where half of the runs fail. No run is trained here."""
