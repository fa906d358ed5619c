"""What is said where the hub cannot be read: how to allow it, or why it failed."""

from __future__ import annotations

import pytest

from stabledllm.runtime.offline import HOW_TO_DOWNLOAD, how_to_reach


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_switched_off_it_says_how_to_allow_it(monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert how_to_reach("the hub said: no") == HOW_TO_DOWNLOAD


@pytest.mark.parametrize("value", ["0", "", None])
def test_allowed_it_says_why_it_failed(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert how_to_reach("the hub said: no") == "the hub said: no"
