"""Whether the packages that the commands need beside the core, those of the extra ``train``, are installed."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version

from stabledllm.errors import UserError


@lru_cache
def require_extra() -> None:
    """Pass silently where every package is there, in a version that the commands work with.

    Raises:
        UserError: one is missing, or has another version, as beside a trainer that pins it.
    """
    try:
        needs = requires("stabledllm") or ()
    except PackageNotFoundError:
        return  # run from its sources, which say nothing of versions
    from packaging.requirements import Requirement

    for need in map(Requirement, needs):
        if need.marker is not None and not need.marker.evaluate({"extra": "train"}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            raise UserError(
                f"expected {need.name} for the command line, found it not installed; pip install 'stabledllm[train]'."
            ) from None
        if not need.specifier.contains(found, prereleases=True):
            raise UserError(
                f"expected {need.name}{need.specifier} for the command line, found {found}; "
                f"pip install 'stabledllm[train]', in another environment where this one needs its version."
            )
