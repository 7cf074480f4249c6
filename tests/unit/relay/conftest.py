"""A loop for nodes and relays, for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay import Cluster, cluster


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    """Without nodes; all that starts on it is stopped at the end."""
    with cluster(tmp_path) as running:
        yield running
