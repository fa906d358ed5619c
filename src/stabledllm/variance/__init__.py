"""Where the noise of the loss comes from, and what each method does to it (arXiv:2511.18159)."""
