"""P-POTS: probe the loss over t, fit p(t), draw t from it (arXiv:2511.18159)."""
