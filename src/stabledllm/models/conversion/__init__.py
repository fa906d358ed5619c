"""Conversion of autoregressive checkpoints to masked diffusion models of the family ``a2d``."""
