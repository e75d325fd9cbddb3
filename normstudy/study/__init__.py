"""Read and write a study's folder: its Parquet tables, other files, locks and checkpoints."""
