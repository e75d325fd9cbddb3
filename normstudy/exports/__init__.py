"""`normstudy export`: write the tables of a study as files of other tools."""
