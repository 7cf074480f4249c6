"""Control groups to pods: with directories that look like them, and this process in one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cilia import abi
from cilia.apps.agent import socket_owners
from cilia.apps.agent.socket_owners import SocketOwners
from cilia.dataplane.bpf import Array
from cilia.dataplane.maps import packing
from cilia.hubble.columns import VERDICT_DROPPED
from cilia.hubble.store import joined
from cilia.model.endpoint import HOST_ENDPOINT, Attachment, Endpoint, EndpointState
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.schema import Desired, Inputs

POD = EndpointId(7)


class Node:
    """A node with one pod, whose namespace is a file, and the groups `pods/a` and `empty`."""

    def __init__(self, place: Path) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        self.netns = place / "netns"
        self.netns.touch()
        self.root = place / "groups"
        self.group = self._make(self.root / "pods" / "a", f"1 {os.getpid()}")
        self.empty = self._make(self.root / "empty", "")
        attachment = Attachment(
            id=POD,
            container_id="a",
            interface="eth0",
            netns=str(self.netns),
            host_interface="lxc7",
            ifindex=9,
            mac="02:00:00:00:00:02",
            host_mac="02:00:00:00:00:01",
            ipv4="10.0.0.7",
            ipv6="fd00::7",
        )
        self.inputs.attachments.put(attachment)
        self.desired.endpoints.put(
            Endpoint(
                attachment=attachment,
                labels=Labels.parse(["k8s:app=web"]),
                identity=IdentityId(300),
                state=EndpointState.READY,
            )
        )
        self.owners = SocketOwners(self.inputs, self.desired, self.root)

    def _make(self, directory: Path, processes: str) -> int:
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text(processes)
        return directory.stat().st_ino


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Its pod's namespace is that of this process."""
    found = Node(tmp_path)
    real = socket_owners.inode

    def inode(path: Path) -> int:
        if path == socket_owners.OWN_NETWORK or path.parts[2:3] == ("1",):
            return 0
        return real(found.netns if path.parts[1] == "proc" else path)

    monkeypatch.setattr(socket_owners, "inode", inode)
    monkeypatch.setattr(socket_owners, "SEARCH_SECONDS", 0.0)
    return found


def event(group: int, *, kind: int = 4, point: int = 1, flags: int = 0) -> Array:
    row = np.zeros(1, abi.layout().dtype("event"))
    row["kind"], row["point"], row["flags"], row["cgroup"] = kind, point, flags, group
    return row


def side(row: Array, name: str) -> tuple[str, int, int]:
    address = packing.address_text(row[name].tobytes())
    return address, int(row[f"{name}_identity"][0]), int(row[f"{name}_endpoint"][0])


def test_who_connects_is_named_on_its_side(node: Node) -> None:
    assert side(node.owners.tell(event(node.group)), "source") == ("10.0.0.7", 300, POD)
    assert side(node.owners.tell(event(node.group, flags=2)), "source") == ("fd00::7", 300, POD)
    answered = node.owners.tell(event(node.group, point=4))
    assert side(answered, "destination") == ("10.0.0.7", 300, POD)
    assert side(answered, "source") == ("", 0, 0)


def test_what_is_not_known_or_no_socket_stays_as_it_was(node: Node) -> None:
    for row in (event(node.empty), event(1), event(0), event(node.group, kind=2)):
        assert node.owners.tell(row.copy()) == row
    nothing = SocketOwners(node.inputs, node.desired, None)
    row = event(node.group)
    assert nothing.tell(row.copy()) == row


def test_translations_of_strangers_are_left_out_if_so_wanted(node: Node) -> None:
    picky = SocketOwners(node.inputs, node.desired, node.root, pods_only=True)
    refused = event(node.empty)
    refused["verdict"] = VERDICT_DROPPED
    rows = [event(node.empty), event(node.group), refused, event(0), event(node.empty, kind=2)]
    told = picky.tell(joined(rows, rows[0].dtype))
    assert told["kind"].tolist() == [4, 4, 2]
    assert [side(told[at : at + 1], "source")[2] for at in range(3)] == [POD, 0, 0]
    assert len(picky.tell(event(node.empty))) == 0
    assert len(node.owners.tell(joined(rows, rows[0].dtype))) == len(rows)


def test_pods_that_go_are_forgotten(node: Node) -> None:
    node.owners.tell(event(node.group))
    node.inputs.attachments.delete(POD)
    assert side(node.owners.tell(event(node.group)), "source") == ("", 0, 0)


def test_groups_are_searched_now_and_then_only(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_owners, "SEARCH_SECONDS", 3600.0)
    node.owners.tell(event(1))
    assert side(node.owners.tell(event(1)), "source") == ("", 0, 0)
    assert side(node.owners.tell(event(node.group)), "source") == ("10.0.0.7", 300, POD)


def test_the_node_itself(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.inputs.attachments.delete(POD)
    monkeypatch.undo()
    monkeypatch.setattr(socket_owners, "SEARCH_SECONDS", 0.0)
    told = node.owners.tell(event(node.group))
    assert side(told, "source") == ("", 0, HOST_ENDPOINT)
