"""What can be known of a run before anything is loaded: whether its settings agree, and whether it fits."""
