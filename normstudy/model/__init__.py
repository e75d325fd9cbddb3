"""The model of one run: a transformer as an ordinary nn.Module, its norms, initialization and kernels."""
