"""Averages of the weights over the steps: kept while a run trains, evaluated at its end, rebuilt afterwards."""
