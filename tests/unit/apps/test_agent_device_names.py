"""Names of interfaces: the kernel takes bytes, flows take text."""

from __future__ import annotations

import socket

import pytest

from cilia.apps.agent import kernel
from cilia.hubble.encode import text


@pytest.mark.parametrize(("name", "told"), [("lxc1", "lxc1"), ("\udcffbad", "\ufffdbad"), ("größe", "größe")])
def test_a_name_is_text_whatever_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.setattr(socket, "if_indextoname", lambda _index: name)
    assert kernel._interface_name(7) == told
    assert text(1, told).decode().endswith(told)
