"""The task ``reasoning-gym:DATASET``: any procedural set of the package reasoning-gym."""
