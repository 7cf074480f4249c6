"""Names in place of numbers, for people who look into the kernel's maps.

What a number stands for is what it stands for now: a backend that came under a number since the dump, or a
frontend that went, is named by the maps' present words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from cilia import abi
from cilia.api.views import PROTOCOLS
from cilia.dataplane.maps import packing
from cilia.dataplane.order import KernelState
from cilia.model.ids import EndpointId
from cilia.model.service import ServiceEntry
from cilia.schema import Desired

Record = dict[str, Any]
Elements = list[Record]
"""Each with `key` and `value`."""

FLAGS = {
    "services": ("service_flags", "SERVICE_"),
    "backends": ("backend_flags", "BACKEND_"),
    "conntrack": ("ct_flags", "CT_"),
    "service_flows": ("service_flow_flags", "SERVICE_FLOW_"),
}
"""By map: the enum of `flags` in its values, and what its names begin with."""
SHOWN_OF_FLOWS = (
    "service", "packets", "bytes", "created", "expires", "flags", "source_identity", "owner", "proxy_port",
)  # fmt: skip
"""Fields of conntrack's values that mean something to people; of no value where they are zero."""
NETWORK_MARK = b"\xff" * 8
"""Upper half of a client's address whose lower half is the cookie of its network namespace."""
PORTLESS = ("ICMP", "ICMPv6")


class MapWords:
    """Knows what the numbers of one kernel mean."""

    def __init__(self, kernel: KernelState, desired: Desired, layout: abi.Layout) -> None:
        self._kernel = kernel
        self._desired = desired
        self._layout = layout
        self._maps: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
            "services": self._service,
            "frontends": self._frontend,
            "backends": lambda key, value: (key, self._backend_row(value)),
            "slots": lambda key, value: (key, self._backend(value)),
            "source_ranges": self._source_range,
            "conntrack": self._flow,
            "service_flows": self._service_flow,
            "snat": self._translation,
            "affinity": self._affinity,
            "socket_services": self._socket,
            "skip_redirect": self._skip,
        }

    def tell(self, name: str, elements: Elements) -> Elements:
        """The same elements in words, as far as there are any."""
        change = self._maps.get(name)
        told = []
        for element in elements:
            key, value = self._plain(name, element["key"]), self._plain(name, element["value"])
            if change is not None:
                key, value = change(key, value)
            told.append({"key": key, "value": value})
        return told

    # what is the same in all maps

    def _plain(self, name: str, record: Any) -> Any:
        if not isinstance(record, dict):
            return record
        told = dict(record)
        if name in FLAGS and "flags" in told:
            told["flags"] = self._flags(*FLAGS[name], told["flags"])
        if "protocol" in told:
            told["protocol"] = PROTOCOLS.get(told["protocol"], str(told["protocol"]))
        for field in ("owner", "endpoint"):
            if field in told:
                told[field] = self._endpoint(told[field])
        now = int(time.monotonic())
        for field in ("created", "seen"):
            if field in told:
                told[field] = f"{max(0, now - told[field])}s ago"
        if "expires" in told:
            left = told["expires"] - now
            told["expires"] = f"in {left}s" if left >= 0 else f"{-left}s ago"
        if told.get("service"):
            told["service"] = self._frontend_text(told["service"])
        return told

    def _flags(self, enum: str, prefix: str, value: int) -> list[str]:
        return [flag.name.removeprefix(prefix) for flag in self._layout.enum(enum) if value & flag]

    def _endpoint(self, number: int) -> str | int:
        row = self._desired.endpoints.get(EndpointId(number)) if number else None
        return f"{number} ({row.pod_name})" if row is not None and row.pod_name else number

    def _backend(self, number: int) -> str:
        return self._kernel.service_maps.backends.text(number)

    def _frontend_text(self, number: int) -> str:
        entry = self._kernel.service_maps.entry(number)
        if entry is None:
            return str(number)
        return f"{entry.frontend} ({owner_text(entry)})"

    # map by map

    def _service(self, key: Record, value: Record) -> tuple[Any, Any]:
        backends = self._kernel.service_maps.backends
        inside, outside = (
            {**each, "backends": backends.in_range(each["first"], each["count"])} for each in value["range"]
        )
        entry = self._kernel.service_maps.entry(value["id"])
        rest = {name: part for name, part in value.items() if name != "range"}
        named = {"service": owner_text(entry)} if entry is not None else {}
        return self._end_of(key), {**named, **rest, "internal": inside, "external": outside}

    def _backend_row(self, value: Record) -> Record:
        """A row without any flag belongs to a backend that is gone."""
        return {"backend": self._end_of(value), "flags": value["flags"] or ["GONE"]}

    def _frontend(self, key: int, value: Record) -> tuple[Any, Any]:
        entry = self._kernel.service_maps.entry(key)
        return key, {
            "frontend": self._end_of(value),
            "service": owner_text(entry) if entry is not None else "",
        }

    def _source_range(self, key: Record, value: Any) -> tuple[Any, Any]:
        length = key["prefixlen"] - 32
        bits = length if ":" in key["address"] else length - 96
        return {"service": key["service"], "prefix": f"{key['address']}/{bits}"}, value

    def _flow(self, key: Record, value: Record) -> tuple[Any, Any]:
        turned = "INITIATOR_HIGH" in value["flags"]
        sides = {
            way: self._side(side)
            for way, side in zip(("egress", "ingress"), value["side"], strict=True)
            if side["judged"]
        }
        plain = {name: value[name] for name in SHOWN_OF_FLOWS if value.get(name)}
        return self._tuple(key, turned=turned), {**sides, **plain}

    def _side(self, side: Record) -> Record:
        """Bit 63: denied; bits 62..32: policy revision; bits 31..0: the peer's identity."""
        judged = side["judged"]
        return {
            "verdict": "denied" if judged >> 63 else "allowed",
            "peer": judged & 0xFFFFFFFF,
            "revision": judged >> 32 & 0x7FFFFFFF,
            "endpoint": self._endpoint(side["endpoint"]),
            "cookie": side["cookie"],
        }

    def _service_flow(self, key: Record, value: Record) -> tuple[Any, Any]:
        """The client's end is the one that is not the frontend's."""
        frontend = value["service"] if isinstance(value["service"], str) else ""
        turned = frontend.partition("/")[0] == self._end(key["low"], key["low_port"])
        told = {name: part for name, part in value.items() if not name.startswith("backend")}
        backend = self._end(value["backend_address"], value["backend_port"])
        return self._tuple(key, turned=turned), {"backend": backend, "number": value["backend"], **told}

    def _translation(self, key: Record, value: Record) -> tuple[Any, Any]:
        way = self._layout.enum("nat_way")(key["way"]).name.removeprefix("NAT_").lower()
        told = {name: part for name, part in value.items() if name not in ("address", "port")}
        return (
            {
                "way": way,
                "protocol": key["protocol"],
                "from": self._end(key["source"], key["source_port"]),
                "to": self._end(key["destination"], key["destination_port"]),
            },
            {"becomes": self._end(value["address"], value["port"]), **told},
        )

    def _affinity(self, key: Record, value: Record) -> tuple[Any, Any]:
        client = packing.address_bytes(key["client"])
        if client.startswith(NETWORK_MARK):
            cookie = int.from_bytes(client[8:], "little")
            key = {**key, "client": f"sockets of network namespace {cookie}"}
        return key, {**value, "backend": self._backend(value["backend"])}

    def _skip(self, key: Record, value: Any) -> tuple[Any, Any]:
        """Each pod stands there twice: as packets show it, and as its sockets do."""
        pod = {"endpoint": key["endpoint"]} if key["endpoint"] else {"network namespace": key["netns"]}
        return {"frontend": self._end_of(key), **pod}, value

    def _socket(self, key: Record, value: Record) -> tuple[Any, Any]:
        asked = {"asked_for": self._end(value["address"], value["port"]), "service": value["service"]}
        return {"cookie": key["cookie"], "given": self._end_of(key)}, asked

    def _tuple(self, key: Record, *, turned: bool) -> Record:
        low, high = self._ends(key)
        zone = self._layout.enum("ct_zone")(key["zone"]).name.removeprefix("CT_ZONE_").lower()
        source, destination = (high, low) if turned else (low, high)
        return {"protocol": key["protocol"], "from": source, "to": destination, "zone": zone}

    def _ends(self, key: Record) -> tuple[str, str]:
        """Pings have an identifier and a type in place of ports."""
        if key["protocol"] in PORTLESS:
            return key["low"] or "::", key["high"] or "::"
        return self._end(key["low"], key["low_port"]), self._end(key["high"], key["high_port"])

    def _end_of(self, record: Mapping[str, Any]) -> str:
        return f"{self._end(record['address'], record['port'])}/{record['protocol']}"

    @staticmethod
    def _end(address: str, port: int) -> str:
        host = address or "::"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def owner_text(entry: ServiceEntry) -> str:
    """Whose a frontend is, in a few words."""
    name = f"{entry.namespace}/{entry.name}" if entry.namespace else entry.name
    return name or entry.kind.value
