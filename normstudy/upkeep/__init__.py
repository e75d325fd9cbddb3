"""Show the status of an existing study, check its files, and compact it."""
