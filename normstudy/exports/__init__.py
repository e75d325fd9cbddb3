"""`normstudy export`: the tables of a study as files of other tools."""
