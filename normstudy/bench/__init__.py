"""Implement `normstudy bench`, which compares normstudy's speed with plain loops and with the machine's limits."""
