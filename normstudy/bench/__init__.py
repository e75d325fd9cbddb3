"""`normstudy bench`: what the machine allows, and how close the package is, measured side by side in one run."""
