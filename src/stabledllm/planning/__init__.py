"""Estimates a run's memory before anything is loaded, and says whether it fits a device."""
