"""The noise of the gradient: its parts A, B and C, and its size under each method, from gradients of single rows."""
