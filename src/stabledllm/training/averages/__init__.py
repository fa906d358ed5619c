"""Averages of the weights over the steps: kept while a run trains, saved and evaluated at its end, rebuilt afterwards."""
