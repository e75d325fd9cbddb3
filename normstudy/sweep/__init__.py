"""From configurations to a study: plan the runs, train what is missing, report."""
