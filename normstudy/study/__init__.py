"""The folder of a study: its Parquet tables, files, locks and checkpoints."""
