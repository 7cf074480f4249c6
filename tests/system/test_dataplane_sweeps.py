"""A round of collection over real maps: what goes, what stays, what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from cilia import abi
from cilia.dataplane.bpf import Array, Map, MapType, create_map
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.conntrack import Conntrack
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.maps.services import Services
from cilia.dataplane.maps.translations import FlowSet, PortUsage
from cilia.dataplane.sweeps import Sweeps
from cilia.model.service import Backend, Frontend, Protocol
from tests.support.dataplane import needs_kernel
from tests.support.service_rows import Clock, entry, frontend, service_maps, target

pytestmark = needs_kernel

TCP, UDP, ICMP = 6, 17, 1
POD, PEER, NODE, VIP, BACKEND = "10.0.0.5", "198.51.100.1", "192.0.2.1", "10.96.0.1", "10.0.0.9"
NOW = 10_000.0
SERVICE_ZONE = 1


class Flows:
    """Fills the maps as the programs do."""

    def __init__(self, maps: dict[str, Map]) -> None:
        self.maps = maps
        layout = abi.layout()
        self._address = layout.dtype("address")
        self.forward, self.reverse = layout.value("NAT_FORWARD"), layout.value("NAT_REVERSE")
        for name in ("ct_quota", "node"):
            spec = layout.maps[name]
            dtypes = layout.dtype(spec.key), layout.dtype(spec.value)
            maps[name] = create_map(
                MapType(spec.type), *dtypes, spec.max_entries, flags=spec.flags, name=name
            )
        self.clock = Clock()
        self.services: Services = target(maps, self.clock)
        self.conntrack = Conntrack(maps["conntrack"], maps["ct_quota"], layout)
        settings = Settings(maps["node"], layout)
        self.node = maps["node"].memory()
        self.node["nat_first_port"], self.node["nat_last_port"] = 50_000, 50_999
        self.sweeps = Sweeps(maps, layout, self.conntrack, self.services, settings)
        self.quota = maps["ct_quota"].memory()

    def address(self, text: str) -> Any:
        return packing.addresses([text], self._address)[0]

    def flow(
        self,
        one: str,
        port: int,
        other: str,
        other_port: int,
        protocol: int = TCP,
        *,
        left: int = 100,
        **rest: int,
    ) -> None:
        """A tracked flow that expires in so many seconds."""
        keys, values = self._key(one, port, other, other_port, protocol), self.maps["conntrack"].values(1)
        values["expires"] = NOW + left
        for name, value in rest.items():
            values[name] = value
        self.quota["opened"][int(values["owner"][0])] += 1
        assert self.maps["conntrack"].put(keys, values) == {}

    def service_flow(
        self,
        client: str,
        port: int,
        backend: str,
        *,
        service: int = 0,
        left: int = 100,
        protocol: int = TCP,
        number: int = 0,
    ) -> None:
        keys, values = self._key(client, port, VIP, 80, protocol), self.maps["service_flows"].values(1)
        keys["zone"] = SERVICE_ZONE
        values["backend"] = number
        values["backend_address"], values["backend_port"] = self.address(backend), 8080
        values["expires"], values["service"] = NOW + left, service
        assert self.maps["service_flows"].put(keys, values) == {}

    def translation(
        self,
        source: str,
        port: int,
        peer: str,
        peer_port: int,
        own_port: int,
        protocol: int = TCP,
        *,
        idle: int = 9000,
        service: int = 0,
        answers_from: tuple[str, int] | None = None,
    ) -> None:
        """Both ways of a flow that leaves as the node's."""
        keys, values = self.maps["snat"].keys(2), self.maps["snat"].values(2)
        back, back_port = answers_from or (peer, peer_port)
        keys["source"], keys["source_port"] = [self.address(source), self.address(back)], [port, back_port]
        keys["destination"] = [self.address(peer), self.address(NODE)]
        keys["destination_port"] = [peer_port, own_port]
        keys["protocol"], keys["way"] = protocol, [self.forward, self.reverse]
        values["address"], values["port"] = [self.address(NODE), self.address(source)], [own_port, port]
        values["seen"], values["service"] = NOW - idle, service
        assert self.maps["snat"].put(keys, values) == {}

    def collect(self) -> None:
        self.clock.now = NOW
        for _ in self.sweeps.collect(lambda: NOW):
            pass

    def count(self, name: str) -> int:
        return len(self.maps[name].dump()[0])

    def _key(self, one: str, port: int, other: str, other_port: int, protocol: int) -> Array:
        """In the canonical order, of an address or of a port."""
        ends = sorted(((packing.address_bytes(one), port), (packing.address_bytes(other), other_port)))
        keys = self.maps["conntrack"].keys(1)
        keys["low"], keys["high"] = (np.frombuffer(raw, self._address)[0] for raw, _ in ends)
        keys["low_port"], keys["high_port"] = (number for _, number in ends)
        if protocol == ICMP:
            keys["low_port"], keys["high_port"] = port, other_port
        keys["protocol"] = protocol
        return keys


@pytest.fixture
def flows() -> Iterator[Flows]:
    with service_maps() as maps:
        made = Flows(maps)
        yield made
        for name in ("ct_quota", "node"):
            maps[name].close()


def test_a_translation_lives_as_long_as_its_flow(flows: Flows) -> None:
    for protocol in (TCP, UDP):
        flows.flow(POD, 1000, PEER, 443, protocol)
        flows.translation(POD, 1000, PEER, 443, 50_000, protocol)
        flows.translation(POD, 1001, PEER, 443, 50_001, protocol)
    flows.flow(POD, 77, PEER, 8, ICMP)
    flows.translation(POD, 77, PEER, 8, 50_000, ICMP)
    flows.translation(POD, 78, PEER, 8, 50_001, ICMP)
    flows.collect()
    assert flows.count("snat") == 6
    flows.flow(POD, 1000, PEER, 443, left=-10)
    flows.collect()
    assert flows.count("snat") == 4 and flows.count("conntrack") == 2


def test_what_was_just_used_stays_without_a_flow(flows: Flows) -> None:
    flows.translation(POD, 1, PEER, 53, 50_000, UDP, idle=59)
    flows.translation(POD, 2, PEER, 53, 50_001, UDP, idle=61)
    flows.translation(POD, 3, PEER, 443, 50_002, TCP, idle=2)
    flows.translation(POD, 4, PEER, 443, 50_003, TCP, idle=3)
    flows.collect()
    left = packing.records(flows.maps["snat"].dump()[0])
    assert {key["source_port"] for key in left if key["way"] == flows.forward} == {1, 3} and len(left) == 4


def test_what_came_while_a_round_goes_on_stays(flows: Flows) -> None:
    """Its flow was not there yet when flows were looked at, or was passed by."""
    clock = iter(NOW + step for step in range(1000))
    round_of_sweeps = flows.sweeps.collect(lambda: next(clock))
    next(round_of_sweeps)
    flows.translation(POD, 3, PEER, 443, 50_002, TCP, idle=0)
    flows.translation(POD, 4, PEER, 443, 50_003, TCP, idle=30)
    for _ in round_of_sweeps:
        pass
    assert flows.count("snat") == 2


def test_what_the_node_was_told_as_a_backend_stays_longer(flows: Flows) -> None:
    keys, values = flows.maps["snat"].keys(2), flows.maps["snat"].values(2)
    keys["source"], keys["destination"] = flows.address(PEER), flows.address(NODE)
    keys["source_port"], keys["protocol"] = [1, 2], TCP
    keys["way"] = abi.layout().value("NAT_DSR")
    values["seen"] = [NOW - 299, NOW - 301]
    assert flows.maps["snat"].put(keys, values) == {}
    flows.collect()
    assert flows.maps["snat"].dump()[0]["source_port"].tolist() == [1]


def test_a_client_of_a_remote_backend_keeps_its_port_while_its_flow_lives(flows: Flows) -> None:
    """The way there is known by the frontend, the way back by the backend."""
    for port in (4000, 4001):
        flows.service_flow(PEER, port, BACKEND, left=100 if port == 4000 else -10)
        flows.translation(PEER, port, VIP, 80, 46_000 + port, service=3, answers_from=(BACKEND, 8080))
    flows.collect()
    left = packing.records(flows.maps["snat"].dump()[1])
    assert {(value["address"], value["port"]) for value in left} == {(NODE, 50_000), (PEER, 4000)}
    assert flows.count("service_flows") == 1


def test_numbers_of_frontends_wait_for_every_map(flows: Flows) -> None:
    flows.services.update([entry(number, 1) for number in range(1, 5)])
    ids = {number: flows.services.id_of(frontend(number)) for number in range(1, 5)}
    flows.flow(POD, 1000, PEER, 443, service=ids[1])
    flows.service_flow(POD, 1000, BACKEND, service=ids[2])
    flows.translation(PEER, 4000, VIP, 80, 50_000, service=ids[3], idle=1)
    flows.services.delete([frontend(number) for number in range(1, 5)])
    flows.collect()
    assert [flows.services.entry(ids[number]) is not None for number in range(1, 5)] == [
        True,
        True,
        True,
        False,
    ]
    for name in ("conntrack", "service_flows", "snat"):
        flows.maps[name].remove(flows.maps[name].dump()[0])
    flows.collect()
    assert flows.services.entry(ids[1]) is None and not flows.maps["frontends"].memory()["port"].any()


def test_datagrams_leave_a_backend_that_their_frontend_has_no_more(flows: Flows) -> None:
    """Others still lead there, so that the programs take it for alive."""
    blue, green = (Backend(address, 8080, Protocol.UDP) for address in (BACKEND, "10.0.0.10"))
    asked, preview = (frontend(number, 80, Protocol.UDP) for number in (1, 2))

    def serve(where: Frontend, *backends: Backend, draining: tuple[Backend, ...] = ()) -> None:
        row = entry(1, frontend=where, internal=backends, external=backends)
        assert flows.services.update([msgspec.structs.replace(row, draining=draining)]) == {}

    serve(asked, blue)
    serve(preview, blue, green)
    assert not flows.sweeps.pressed
    number, other = flows.services.id_of(asked), flows.services.id_of(preview)
    numbers = {flows.services.backends.text(n): n for n in (1, 2)}
    mine, its = numbers[str(blue)], numbers[str(green)]
    flows.service_flow(POD, 1000, BACKEND, service=number, number=mine, protocol=UDP)
    flows.service_flow(POD, 1001, BACKEND, service=other, number=mine, protocol=UDP)
    serve(asked, green, draining=(blue,))
    assert not flows.sweeps.pressed
    serve(asked, green)
    assert flows.sweeps.pressed
    flows.collect()
    assert flows.maps["service_flows"].dump()[1]["service"].tolist() == [other]
    assert not flows.sweeps.pressed
    flows.service_flow(POD, 1000, "10.0.0.10", service=number, number=its, protocol=UDP)
    flows.services.delete([asked])
    serve(asked, blue)
    assert flows.services.left == {(number, its)}
    flows.collect()
    assert flows.count("service_flows") == 1
    flows.services.delete([asked])
    serve(asked, blue)
    assert not flows.sweeps.pressed


def test_connections_stay_with_a_backend_that_others_have(flows: Flows) -> None:
    both = [entry(number, frontend=frontend(number)) for number in (1, 2)]
    flows.services.update(both)
    flows.services.delete([both[0].frontend])
    assert not flows.sweeps.pressed


def test_quotas_stay_exact_while_flows_open_and_expire(flows: Flows) -> None:
    for port in range(3000):
        flows.flow(POD, port, PEER, 443, owner=7 + port % 2, left=-10 if port % 3 else 50)
    steps = flows.conntrack.sweep(lambda: int(NOW))
    next(steps)
    for port in range(3000, 3100):
        flows.flow(POD, port, PEER, 443, owner=7)
    list(steps)
    live = flows.quota["opened"] - flows.quota["closed"]
    owners = np.bincount(flows.maps["conntrack"].dump()[1]["owner"], minlength=9)
    assert (live[7], live[8]) == (owners[7], owners[8]) and owners[7] == 600 and owners[8] == 500


@pytest.mark.parametrize("drift", [-40, 40])
def test_a_quota_that_a_killed_agent_left_wrong_is_mended(flows: Flows, drift: int) -> None:
    for port in range(100):
        flows.flow(POD, port, PEER, 443, owner=7)
    flows.quota["closed"][7] += np.int64(drift).view(np.uint64)
    flows.collect()
    assert int(flows.quota["opened"][7] - flows.quota["closed"][7]) == 100


def test_the_peers_that_use_most_ports_are_named(flows: Flows) -> None:
    for port in range(300):
        flows.translation(POD, port, PEER, 443, 50_000 + port, idle=1)
        if port < 30:
            flows.translation(POD, port, "2001:db8::1", 53, 50_000 + port, UDP, idle=1)
    flows.collect()
    sample = flows.sweeps.ports
    assert sample is not None and (sample.limit, sample.total) == (1000, 330)
    most, second = sample.heaviest
    assert (most.used, most.protocol, most.peer, most.port, most.address) == (300, TCP, PEER, 443, NODE)
    assert (second.used, second.peer) == (30, "2001:db8::1")
    assert [found.share for found in flows.sweeps.forecasts()] == [0.3, 0.03]


def test_many_small_peers_do_not_hide_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilia.dataplane.maps.translations.PEERS", 256)
    layout = abi.layout()
    usage = PortUsage(layout)
    for step in range(40):
        keys = np.zeros(100, layout.dtype("nat_key"))
        keys["way"] = layout.value("NAT_REVERSE")
        keys["source"]["lo"][:60] = np.arange(60) + 1000 * step + 10
        keys["source"]["lo"][60:] = 1
        usage.look(keys, np.zeros(100, layout.dtype("nat_entry")))
    (most,) = usage.sample(1.0, 1000, 1).heaviest
    assert most.used == 1600 and usage.total == 4000


def test_a_flow_set_knows_flows_from_both_ends_and_hardly_any_other() -> None:
    layout = abi.layout()
    rng = np.random.default_rng(2)
    ends = [np.zeros(2000, layout.dtype("address")) for _ in range(2)]
    for end in ends:
        end["lo"] = rng.integers(0, 1 << 62, 2000)
    ports = [rng.integers(0, 65536, 2000).astype(">u2") for _ in range(2)]
    protocol = np.full(2000, TCP)
    flows = FlowSet(2000, salt=4711)
    half = slice(0, 1000)
    flows.add(ends[0][half], ports[0][half], ends[1][half], ports[1][half], protocol[half])
    turned = flows.has(ends[1], ports[1], ends[0], ports[0], protocol)
    assert turned[half].all() and turned[1000:].mean() < 0.1
    assert not FlowSet(0, 1).has(ends[0], ports[0], ends[1], ports[1], protocol).any()
