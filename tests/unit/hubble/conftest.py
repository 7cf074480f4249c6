"""An observer for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.hubble import Beside, beside


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Beside]:
    """Without flows, on a unix socket."""
    with beside(tmp_path / "hubble.sock") as running:
        yield running


@pytest.fixture
def channel(running: Beside) -> Iterator[grpc.Channel]:
    """grpcio's to `running`."""
    with grpc.insecure_channel(running.target) as channel:
        yield channel
