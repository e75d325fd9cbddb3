"""Provide the `normstudy` command: its arguments, its help texts, and one function per subcommand."""
