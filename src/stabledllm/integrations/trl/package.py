"""Which versions of TRL the mixins fit. What they override is not its public interface and changes between releases."""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet

from stabledllm.errors import UserError

SUPPORTED = SpecifierSet(">=1.15,<2")


def check_package() -> None:
    """Refuse a Python without TRL, or with a version that the mixins do not fit.

    Raises:
        UserError: says what to install.
    """
    try:
        found = metadata.version("trl")
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not SUPPORTED.contains(found, prereleases=True):
        raise UserError(
            f"stabledllm.integrations.trl: expected the package trl, version {SUPPORTED}, found {found or 'none'}; pip "
            f"install 'stabledllm[trl]'."
        )


def check_hooks(trainer: type, mixin: type, hooks: tuple[str, ...]) -> None:
    """Refuse a trainer without the methods that a mixin overrides: another one, or of a release that renamed them.

    Raises:
        UserError: names them.
    """
    bases = [base for base in trainer.__mro__ if not issubclass(base, mixin)]
    missing = [name for name in hooks if not any(name in vars(base) for base in bases)]
    if missing:
        raise UserError(
            f"{trainer.__name__}: expected a trainer of TRL {SUPPORTED} behind {mixin.__name__}, found none with "
            f"{', '.join(missing)}."
        )
