"""One loaded data path for all tests of this folder; each test finds it freshly furnished."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from datapath_world import World, load_world


@pytest.fixture(scope="session")
def loaded_world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads eBPF programs")
    with load_world("bpf") as world:
        yield world


@pytest.fixture
def world(loaded_world: World) -> World:
    loaded_world.furnish()
    return loaded_world
