"""The contract of a user's own block or norm, tried before anything trains."""
