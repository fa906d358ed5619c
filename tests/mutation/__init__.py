"""The tests have power: every check raises when the mistake that it guards against is injected."""
