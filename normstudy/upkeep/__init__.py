"""Commands for an existing study: show its status, check its files, compact it."""
