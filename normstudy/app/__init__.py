"""`normstudy run` and `normstudy sweep`: Hydra turns the command line into RunConfigs."""
