"""The figures of a study, drawn from its Parquet tables alone, without torch."""
