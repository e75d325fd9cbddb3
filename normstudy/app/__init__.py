"""Run `normstudy run` and `normstudy sweep`, whose command lines Hydra turns into RunConfigs."""
