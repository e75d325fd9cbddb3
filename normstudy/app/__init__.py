"""`normstudy run` and `normstudy sweep`: Hydra's command line and its sweeps, turned into RunConfigs."""
