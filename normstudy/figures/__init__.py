"""Draw a study's figures from its Parquet tables alone, without torch."""
