"""Turn the command lines of `normstudy run`, `sweep` and `critical` into RunConfigs with Hydra, and train the runs."""
