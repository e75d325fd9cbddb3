"""Implement `normstudy bench`, which compares normstudy's speed with plain training loops and the machine's limits."""
