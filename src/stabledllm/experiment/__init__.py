"""Methods x seeds: the runs, their statistics over seeds, ``results.json``."""
