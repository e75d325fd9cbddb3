"""From the tables of a study to small tables: outcomes, comparisons, selections. Never imports torch."""
