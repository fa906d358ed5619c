"""Gradients of single rows: exact, or as seeded random projections."""
