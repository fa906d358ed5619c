"""Tasks: what is read, what is made, what is counted correct."""
