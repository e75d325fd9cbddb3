"""How Hydra's sweeps become lists of RunConfig: batch.py has the logic, plugin/ is what Hydra discovers."""
