"""Services written into the maps by hand, the way the data plane does: backends, slots, then the frontend."""

from __future__ import annotations

from typing import Any

import numpy as np

from cilia import abi
from cilia.dataplane.loader import Dataplane
from tests.support.datapath_world import address_bytes

TCP, UDP = 6, 17
Address = tuple[str, int]
CLEARED = ("services", "affinity", "source_ranges", "socket_services", "skip_redirect", "service_flows")


class ServiceMaps:
    """The service maps of a loaded data path, empty at first. Numbers count up from 1."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.layout: abi.Layout = dataplane.layout
        self.maps = dataplane.maps
        self.settings = dataplane.maps["node"].memory()
        self.frontends = dataplane.maps["frontends"].memory()
        self.backends = dataplane.maps["backends"].memory()
        self.slots = dataplane.maps["slots"].memory()
        self.clear()

    def clear(self) -> None:
        """No services, and nothing remembered of any."""
        for name in CLEARED:
            found = self.maps[name]
            found.remove(found.dump()[0])
        self.backends[:64] = np.zeros(64, self.backends.dtype)
        self._numbers: dict[tuple[str, int, int], int] = {}
        self._services = 0
        self._slot = 0

    def flags(self, *names: str) -> int:
        """Bits by their names in the layout."""
        return int(np.bitwise_or.reduce([0, *(self.layout.value(name) for name in names)]))

    def enable(self, *names: str) -> None:
        """Set flags of the node."""
        self.settings["flags"][0] |= self.flags("NODE_SERVICES", *names)

    def number(self, address: str, port: int, protocol: int = TCP) -> int:
        """A live backend's number."""
        key = (address, port, protocol)
        if key not in self._numbers:
            number = self._numbers[key] = len(self._numbers) + 1
            live = self.layout.value("BACKEND_LIVE")
            self.backends[number] = self.record(
                "backend", address=address, port=port, protocol=protocol, flags=live
            )
        return self._numbers[key]

    def kill(self, address: str, port: int, protocol: int = TCP) -> None:
        """The backend is gone; slots may still name it."""
        self.backends["flags"][self._numbers[address, port, protocol]] = 0

    def add(
        self,
        frontend: Address,
        *internal: Address,
        external: tuple[Address, ...] | None = None,
        protocol: int = TCP,
        flags: tuple[str, ...] = (),
        affinity: int = 0,
    ) -> int:
        """A service; its id. Without `external`, clients outside have the same backends."""
        self._services += 1
        number = self._services
        self.frontends[number] = self.record(
            "frontend", address=frontend[0], port=frontend[1], protocol=protocol
        )
        ranges = [
            self._range(each, protocol) for each in (internal, internal if external is None else external)
        ]
        row = self.record(
            "service", id=number, flags=self.flags(*flags), affinity=affinity, revision=100 + number
        )
        row["range"]["first"] = [first for first, _ in ranges]
        row["range"]["count"] = [count for _, count in ranges]
        self.maps["services"].update(self.key(frontend, protocol), row)
        return number

    def key(self, frontend: Address, protocol: int = TCP) -> np.void:
        """The key of a frontend."""
        return self.record("service_key", address=frontend[0], port=frontend[1], protocol=protocol)

    def record(self, name: str, **fields: Any) -> np.void:
        """One value of a struct; addresses as text."""
        made = np.zeros(1, self.layout.dtype(name))
        for field, value in fields.items():
            if made[field].dtype.names == ("hi", "lo"):
                made[field] = np.frombuffer(address_bytes(value), made[field].dtype)
            else:
                made[field] = value
        found: np.void = made[0]
        return found

    def _range(self, backends: tuple[Address, ...], protocol: int) -> tuple[int, int]:
        first = self._slot
        for address, port in backends:
            self.slots[self._slot] = self.number(address, port, protocol)
            self._slot += 1
        return first, len(backends)
