"""Implement `normstudy bench`, which measures normstudy's speed beside plain loops and the machine's limits."""
