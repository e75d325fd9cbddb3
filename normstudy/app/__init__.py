"""Turn the command lines of `normstudy run` and `normstudy sweep` into RunConfigs, using Hydra, and train the runs."""
