"""Checks that a user's own block or norm keeps the rules of the contract, made before any run trains."""
