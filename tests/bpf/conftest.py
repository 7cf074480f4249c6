"""One loaded data path for all tests of this folder; each test finds it freshly furnished."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.dataplane import bpf, libbpf
from tests.support.datapath_world import World, load_world
from tests.support.outside_client import balanced, nodes_and_client
from tests.support.service_world import Balancer


@pytest.fixture(scope="package")
def loaded_world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads eBPF programs")
    with load_world("bpf") as world:
        yield world


@pytest.fixture
def world(loaded_world: World) -> World:
    loaded_world.furnish()
    return loaded_world


@pytest.fixture(scope="package")
def door_program(loaded_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The program that stands before from_overlay and gives packets their tunnel metadata."""
    clang = os.environ.get("CLANG", "clang")
    if shutil.which(clang) is None:
        pytest.skip("needs clang, which also builds the data path")
    made = tmp_path_factory.mktemp("door") / "door.o"
    source = Path(__file__).with_name("overlay_door.bpf.c")
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    command = [
        clang,
        "-target",
        "bpf",
        "-O2",
        "-g",
        "-idirafter",
        include,
        "-c",
        str(source),
        "-o",
        str(made),
    ]
    subprocess.run(command, check=True)
    with libbpf.BpfObject(made) as opened:
        loaded = opened.load()
    put_behind(loaded.maps["behind"], loaded_world.dataplane.programs["from_overlay"])
    yield loaded.programs["door"]
    os.close(loaded.programs["door"])
    os.close(loaded.maps["behind"])


def put_behind(programs: int, target: int) -> None:
    """Element 0 of a program array; the project's own maps hold no programs."""
    key, value = ctypes.c_uint32(0), ctypes.c_uint32(target)
    addresses = ctypes.addressof(key), ctypes.addressof(value)
    bpf.call(bpf.Command.UPDATE, struct.pack("<I4xQQQ", programs, *addresses, 0))


@pytest.fixture
def door(world: World, door_program: int) -> Iterator[World]:
    """The world with the door among its programs."""
    world.dataplane.programs["door"] = door_program
    yield world
    world.dataplane.programs.pop("door")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, World]]:
    """Two nodes whose services a client outside asks for."""
    with nodes_and_client() as worlds:
        yield worlds


@pytest.fixture
def balancers(cluster: dict[str, World]) -> Iterator[list[Balancer]]:
    """Services of both nodes."""
    with balanced(cluster) as both:
        yield both
