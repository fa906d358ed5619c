"""What is said where TRL is not installed, in another version, or without what the mixins override."""

from __future__ import annotations

import sys
from importlib import import_module, metadata

import pytest

from stabledllm.errors import UserError

WANTED = r"expected the package trl, version .*, found {}; pip install 'stabledllm\[trl\]'\.$"


def installed(monkeypatch, version: str | None) -> None:
    """An environment with that version of TRL, or none, in which nothing of ours that needs it was imported."""

    def found(name: str) -> str:
        if name != "trl":
            return known(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    known = metadata.version
    monkeypatch.setattr(metadata, "version", found)
    for name in [name for name in sys.modules if name.startswith("stabledllm.integrations.trl")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(("version", "told"), [(None, "none"), ("1.8.0", "1.8.0"), ("2.0.1", "2.0.1")])
def test_one_sentence_says_what_to_install(monkeypatch, version, told):
    installed(monkeypatch, version)
    with pytest.raises(UserError, match=WANTED.format(told)):
        import_module("stabledllm.integrations.trl")


def test_the_other_plug_points_do_without(monkeypatch):
    installed(monkeypatch, None)
    from stabledllm.integrations import Noise, SFTNoise

    assert Noise
    assert SFTNoise


def test_a_trainer_without_the_hooks_is_refused(monkeypatch):
    pytest.importorskip("trl", reason="the package trl is not installed")
    from stabledllm.integrations.trl import MaskedDPO

    class Other:
        def _compute_loss(self):
            pass

    class Mine(MaskedDPO, Other):
        pass

    with pytest.raises(UserError, match=r"^Mine: expected a trainer of TRL .*MaskedDPO, found none with _prepare_dat"):
        Mine(model=None)
