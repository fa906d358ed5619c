"""Rebuilds a step of a run from its checkpoint, and says where its gradient norm came from."""
