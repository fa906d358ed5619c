"""Estimates of the log-likelihood of responses under a masked diffusion model, from draws that several models share."""
