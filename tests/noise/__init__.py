"""The noise: generator, streams, sources of u, densities of t, maskers, views, method strings."""
