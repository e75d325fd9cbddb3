"""Turn the command lines of `normstudy run` and `normstudy sweep` into RunConfigs, by Hydra, and train the runs."""
