"""Implement `normstudy export`: write the tables of a study in the formats of other tools."""
