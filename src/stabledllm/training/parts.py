"""Records how the steps of a run were made: one part per stretch with the same settings, versions and device."""

from __future__ import annotations

import copy
from typing import Any

from stabledllm.runtime.provenance import versions

_APART = ("out", "allow_changed")
_OF_A_PART = ("config", "versions", "device", "devices")


def new_part(config: dict, device: str, devices: int) -> dict:
    """The part of the coming steps: all settings, the versions, the device in words, the number of devices."""
    return {"config": config, "versions": versions(), "device": device, "devices": devices}


def parts_until(parts: list[dict], part: dict, step: int, seconds: float) -> list[dict]:
    """The parts of a run at ``step``: the earlier ones, and ``part`` for the steps since, which took ``seconds``.

    A part that is made like the one before it is merged with it.
    """
    first = parts[-1]["steps"][1] + 1 if parts else 1
    if step < first:
        return parts
    if parts and all(_same(parts[-1].get(key), part[key]) for key in _OF_A_PART):
        before = parts[-1]
        return [*parts[:-1], before | {"steps": [before["steps"][0], step], "seconds": before["seconds"] + seconds}]
    return [*parts, part | {"steps": [first, step], "seconds": seconds}]


def unknown_part(step: int) -> dict:
    """The part with the steps of a checkpoint that does not say how they were made."""
    return dict.fromkeys(_OF_A_PART) | {"steps": [1, step], "seconds": 0.0}


def published(parts: list[dict]) -> list[dict]:
    """The parts in the form of ``run.json``.

    Each has its steps, versions and devices, and the settings in which it differs from the last part, whose settings
    are the run's ``config``.
    """
    last = _flat(parts[-1]["config"] or {}) if parts else {}
    return [
        {key: part[key] for key in ("steps", "versions", "device", "devices")}
        | {"changed": _difference(_flat(part["config"]), last) if part["config"] is not None else None}
        for part in parts
    ]


def with_changes(config: dict, changed: dict | None) -> dict:
    """All settings of a part, from those of the last part and its own as :func:`published` tells them.

    >>> with_changes({"seed": 1, "trainer": {"optim": "adamw_torch"}}, {"trainer.learning_rate": 0.1})
    {'seed': 1, 'trainer': {'optim': 'adamw_torch', 'learning_rate': 0.1}}
    """
    whole = copy.deepcopy(config)
    for key, value in (changed or {}).items():
        *groups, name = key.split(".")
        place = whole
        for group in groups:
            place[group] = place[group] if isinstance(place.get(group), dict) else {}
            place = place[group]
        if groups and value is None:
            place.pop(name, None)  # not given
        else:
            place[name] = value
    return whole


def are_sound(parts: Any) -> bool:
    """Whether a value read from a file has the form of what :func:`parts_until` returns."""
    kinds = {"config": dict | None, "versions": dict | None, "device": str | None, "devices": int | None}
    return isinstance(parts, list) and all(
        isinstance(part, dict)
        and all(key in part and isinstance(part[key], kind) for key, kind in kinds.items())
        and isinstance(part.get("seconds"), int | float)
        and isinstance(part.get("steps"), list)
        and [type(step) for step in part["steps"]] == [int, int]
        for part in parts
    )


def changes_between(before: dict, now: dict) -> list[str]:
    """A phrase for each version, device or number of devices that differs between two parts."""
    if before.get("versions") is None:
        return []
    old, new = before["versions"], now["versions"]
    changes = [f"{name} {old.get(name)} -> {new.get(name)}" for name in new if old.get(name) != new[name]]
    if _kind(before["device"]) != _kind(now["device"]):
        changes.append(f"device {before['device']} -> {now['device']}")
    if before["devices"] != now["devices"]:
        changes.append(f"{before['devices']} -> {now['devices']} devices")
    return changes


def _kind(device: str) -> str:
    return device.split(" (")[0]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return not _difference(_flat(a), _flat(b))
    return a == b


def _difference(ours: dict, theirs: dict) -> dict:
    keys = [key for key in [*ours, *(key for key in theirs if key not in ours)] if key not in _APART]
    return {key: ours.get(key) for key in keys if ours.get(key) != theirs.get(key)}


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return out
