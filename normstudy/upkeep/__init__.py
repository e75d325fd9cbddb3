"""What one does with a study that exists: show its status, check its files, compact it."""
