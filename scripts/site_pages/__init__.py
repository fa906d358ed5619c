"""The pages of the site that are made: of the README, the studies, the recipes, the docstrings and the notebooks."""
