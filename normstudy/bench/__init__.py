"""`normstudy bench`: measure normstudy's speed beside reference loops and the machine's limits, in the same session."""
