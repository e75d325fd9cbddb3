"""Define the model that a run trains: the transformer, its norms, its initialization and its matrix products."""
