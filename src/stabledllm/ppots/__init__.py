"""P-POTS: probe the loss at mask ratios t, fit a density p(t) to it, draw t from p (arXiv:2511.18159)."""
