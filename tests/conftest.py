"""The order in which files run."""

from __future__ import annotations

LONG = ("slow", "processes")


def pytest_collection_modifyitems(items) -> None:
    """Files with long tests come first: at the end no core waits for another one that has only just begun such a file."""
    long = {item.path for item in items if any(item.get_closest_marker(name) for name in LONG)}
    items.sort(key=lambda item: item.path not in long)
