"""Analyze a study's tables: select runs, determine outcomes, and compare pairs of runs."""
