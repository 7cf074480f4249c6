"""For all commands: settings of whoever runs the tests don't count."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file with lasting values of flags."""
    monkeypatch.setenv("HUBBLE_CONFIG", os.devnull)
