"""Preference optimisation of masked diffusion models, on a likelihood whose noise is known.

A preference loss compares two responses under a policy and a reference, by the ELBO of each in place of the
log-likelihood that a masked diffusion model does not give. The noise of these four estimates enters through a
nonlinearity, and so becomes a bias of the loss beside its variance. Nothing here knows of a Trainer.
"""
