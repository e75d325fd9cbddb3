"""The rules that a user's own block or norm must keep, checked before anything trains."""
