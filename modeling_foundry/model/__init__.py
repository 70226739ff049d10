"""The model and what travels with it: configuration, forward pass, losses, kernels, conversion."""
