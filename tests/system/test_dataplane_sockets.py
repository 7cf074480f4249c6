"""The hooks of sockets on a control group: who hangs them there, and what a restart does to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.dataplane import bpf, sockets
from cilia.dataplane.bpf import BpfError
from cilia.lab import cgroups
from tests.support.dataplane import clean, loaded_small, needs_kernel

pytestmark = needs_kernel


@pytest.fixture
def group() -> Iterator[Path]:
    made = cgroups.create(cgroups.find_mount() / f"cilia-test-hooks-{os.getpid()}")
    try:
        yield made
    finally:
        cgroups.remove(made)
        clean()


def programs_on(pins: Path) -> dict[str, int]:
    """The kernel's number of the program on each link."""
    found = {}
    for name in sockets.HOOKS:
        link = bpf.get(pins / name)
        assert link is not None
        found[name] = bpf.link_target(link)[0]
        os.close(link)
    return found


def test_the_hooks_outlive_the_agent_and_are_exchanged_in_place(group: Path) -> None:
    with loaded_small() as dataplane:
        sockets.attach(dataplane, group)
        assert set(dataplane.attached()) == set(sockets.HOOKS)
        pins = dataplane.root / "links"
        links = {name: bpf.object_id(fd) for name, fd in dataplane.links.items()}
    before = programs_on(pins)
    with loaded_small(pod_sockets_enabled=False) as dataplane:
        sockets.attach(dataplane, group)
        assert {name: bpf.object_id(fd) for name, fd in dataplane.links.items()} == links
        after = programs_on(pins)
        assert after == {name: bpf.object_id(dataplane.programs[name]) for name in sockets.HOOKS}
        assert not set(before.values()) & set(after.values())
        sockets.detach(dataplane)
        sockets.detach(dataplane)
        assert not dataplane.attached()


def test_hooks_move_to_another_group(group: Path) -> None:
    inner = cgroups.create(group / "inner")
    with loaded_small() as dataplane:
        sockets.attach(dataplane, group)
        sockets.attach(dataplane, inner)
        targets = {bpf.link_target(fd)[1] for fd in dataplane.links.values()}
        assert targets == {inner.stat().st_ino}
        cgroups.remove(inner)
        sockets.attach(dataplane, group)
        assert {bpf.link_target(fd)[1] for fd in dataplane.links.values()} == {group.stat().st_ino}


def test_what_is_no_control_group_is_refused(group: Path, tmp_path: Path) -> None:
    with loaded_small() as dataplane:
        for directory in (tmp_path, tmp_path / "missing"):
            with pytest.raises(
                BpfError, match=f"{directory} is no control group of version 2 .* --cgroup-root"
            ):
                sockets.attach(dataplane, directory)
