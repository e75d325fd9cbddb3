"""From the tables of a study to small tables: outcomes, pairs, comparisons, selections."""
