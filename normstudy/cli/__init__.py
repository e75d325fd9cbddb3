"""Provide the `normstudy` command: its arguments, its help texts, and the choice of what to run."""
