"""Turn configurations into a study: plan the runs, train the missing ones, and report the results."""
