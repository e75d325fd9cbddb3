"""Write the tables of a study in the formats of other tools: `normstudy export`."""
