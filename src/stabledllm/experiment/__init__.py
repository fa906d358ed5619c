"""Experiments: a run for every method and seed, statistics over seeds, and ``results.json``."""
