"""Group-relative policy optimisation: advantages, the clipped loss, and its noise."""
