"""The noise of the loss: its parts A, B and C, and its size under each method (arXiv:2511.18159)."""
