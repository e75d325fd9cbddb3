"""The model that one run trains: a transformer as an ordinary nn.Module, its norms, initialization and kernels."""
