"""The forward process: everything that training draws at random, which is mask ratios and masks.

It needs torch only (a real power of the objective needs scipy too). Every draw is a pure function of (seed, optimizer
step, row's position in the step's global batch, token index in the unpadded row, stream). Modules that
only read names (``parts``, ``names``, ``of_parts``, ``weightings``) load no torch, for commands that only check.
"""
