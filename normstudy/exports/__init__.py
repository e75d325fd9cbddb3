"""`normstudy export`: write a study's tables in other tools' formats."""
