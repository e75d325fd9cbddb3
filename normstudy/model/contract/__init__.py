"""Check, before any run trains, that a user's own block or norm keeps the rules in rules.py."""
