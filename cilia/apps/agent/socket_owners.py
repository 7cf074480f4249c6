"""Whose sockets events of sockets are about.

The programs know the control group of who connects, not its pod. A control group's number is the inode of its
directory; a process in it shows the network namespace, and that is a pod's or the node's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cilia.dataplane.bpf import Array
from cilia.dataplane.maps import packing
from cilia.hubble.columns import FLAG_IPV6, KIND_SOCKET, PRE_REVERSE, VERDICT_DROPPED, blobs
from cilia.model.endpoint import HOST_ENDPOINT, Endpoint
from cilia.model.ids import EndpointId
from cilia.schema import Desired, Inputs

OWN_NETWORK = Path("/proc/self/ns/net")
SEARCH_SECONDS = 1.0
"""Between two walks through the control groups: whoever asks for none that can be found must not keep the
agent busy."""
LOOKED_AT = 16
"""Processes of a control group that are asked for their network at most."""


class SocketOwners:
    """Fills in who connects: endpoint, identity and address."""

    def __init__(
        self, inputs: Inputs, desired: Desired, root: Path | None, *, pods_only: bool = False
    ) -> None:
        """`root`: the control group whose sockets are translated. `pods_only`: leave out translations of
        sockets that belong to no pod and not to the node."""
        self._attachments = inputs.attachments
        self._desired = desired
        self._root = root
        self._pods_only = pods_only
        self._revision = -1
        self._known: dict[int, EndpointId] = {}
        """By control group."""
        self._searched = -SEARCH_SECONDS

    def tell(self, events: Array) -> Array:
        """The same events, those of sockets with their owners; without translations of strangers', if so
        wanted."""
        if self._root is None or not (events["kind"] == KIND_SOCKET).any():
            return events
        events = events.copy()
        strange = (events["kind"] == KIND_SOCKET) & (events["verdict"] != VERDICT_DROPPED)
        for at in np.flatnonzero((events["kind"] == KIND_SOCKET) & (events["cgroup"] != 0)):
            owner = self._owner(int(events["cgroup"][at]))
            if owner is not None:
                self._write(events[at : at + 1], owner)
                strange[at] = False
        return blobs(events)[~strange].view(events.dtype) if self._pods_only and strange.any() else events

    def _write(self, event: Array, owner: EndpointId) -> None:
        side = "destination" if event["point"][0] >= PRE_REVERSE else "source"
        event[f"{side}_endpoint"] = owner
        row = self._desired.endpoints.get(owner)
        if row is None:
            return
        event[f"{side}_identity"] = row.identity
        address = _address(row, ipv6=bool(event["flags"][0] & FLAG_IPV6))
        event[side] = packing.addresses([address], event[side].dtype)

    def _owner(self, group: int) -> EndpointId | None:
        """None: not known."""
        if self._attachments.revision != self._revision:
            self._revision = self._attachments.revision
            self._known.clear()
        known = self._known.get(group)
        if known is None and time.monotonic() - self._searched >= SEARCH_SECONDS:
            self._searched = time.monotonic()
            known = self._search(group)
        return known

    def _search(self, wanted: int) -> EndpointId | None:
        """Look through all control groups: sockets seldom come alone."""
        networks = self._networks()
        for group, directory in self._groups():
            found = next((networks[ns] for ns in _networks_in(directory) if ns in networks), None)
            if found is not None:
                self._known[group] = found
        return self._known.get(wanted)

    def _networks(self) -> dict[int, EndpointId]:
        """Endpoints by the inode of their network namespace."""
        places = [(Path(row.netns), row.id) for row in self._attachments]
        places.append((OWN_NETWORK, HOST_ENDPOINT))
        return {number: owner for path, owner in places if (number := inode(path))}

    def _groups(self) -> Iterator[tuple[int, Path]]:
        assert self._root is not None
        for place, _, _ in os.walk(self._root):
            directory = Path(place)
            yield inode(directory), directory


def _networks_in(directory: Path) -> Iterator[int]:
    """Network namespaces of some processes in a control group, as long as there are any."""
    try:
        processes = (directory / "cgroup.procs").read_text().split()[:LOOKED_AT]
    except OSError:
        return
    for process in processes:
        yield inode(Path("/proc", process, "ns/net"))


def inode(path: Path) -> int:
    """Number of what is at a path; 0: nothing that we may see."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _address(row: Endpoint, *, ipv6: bool) -> str:
    return next((address for address in row.addresses if (":" in address) == ipv6), "")
