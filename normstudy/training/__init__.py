"""Train many runs as one program."""
