"""Record the gradients of any PyTorch training loop into the tables of a study."""
