"""The `normstudy` command: its arguments, help texts and dispatch."""
