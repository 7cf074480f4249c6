"""Ports that run out, frontends that are not in the kernel, and words for numbers in maps."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cilia import abi
from cilia.api.types import Health
from cilia.apps.agent import verifying
from cilia.apps.agent.map_words import MapWords
from cilia.apps.agent.service_answers import ServiceAnswers
from cilia.apps.agent.verifying import Verifying
from cilia.dataplane.maps.translations import PortForecast, PortSample, PortUse
from cilia.dataplane.order import KernelState
from cilia.dataplane.verify import Difference, Verifier
from cilia.kit.clock import ManualClock, SystemClock
from cilia.model.service import Frontend, FrontendKind, Protocol, ServiceEntry, ServiceState
from cilia.schema import Desired
from cilia.tables.reconciler import State, Status

VIP = Frontend("10.96.0.7", 80, Protocol.TCP)
WEB = ServiceEntry(frontend=VIP, kind=FrontendKind.CLUSTER_IP, namespace="shop", name="web")
USE = PortUse(100, 6, "192.0.2.9", 443, "172.18.0.2")


class Kernel(SimpleNamespace):
    """As much of a KernelState as is asked."""

    def __init__(self, *forecasts: PortForecast, sample: PortSample | None = None) -> None:
        super().__init__()
        self.layout = abi.layout()
        self.status: dict[Frontend, Status] = {}
        self.services = SimpleNamespace(
            status=self.status,
            done=lambda key: key in self.status,
            errors=lambda: [one for one in self.status.values() if one.state is State.ERROR],
        )
        self.sweeps = SimpleNamespace(
            forecasts=lambda: list(forecasts), ports=sample, translations=SimpleNamespace(entries=7)
        )
        self.service_maps = SimpleNamespace(
            entry={9: WEB}.get,
            backends=SimpleNamespace(
                text=lambda number: f"10.0.0.{number}:8080/TCP",
                in_range=lambda first, count: [f"10.0.0.{n}:8080/TCP" for n in range(first, first + count)],
            ),
        )

    def map(self, name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(max_entries=1000))


def answers(kernel: Kernel, desired: Desired | None = None, *, enabled: bool = True) -> ServiceAnswers:
    return ServiceAnswers(
        desired or Desired(), cast(KernelState, kernel), ManualClock(monotonic=50.0), enabled=enabled
    )


@pytest.mark.parametrize(
    ("share", "seconds", "urgent"),
    [(0.5, None, False), (0.85, None, True), (0.5, 60.0, True), (0.5, 7200.0, False), (0.05, 60.0, False)],
)
def test_ports_that_run_out_are_told(share: float, seconds: float | None, urgent: bool) -> None:
    component = answers(Kernel(PortForecast(USE, 200, share, seconds))).nat_component()
    assert (component.state is Health.WARNING) == urgent
    assert ("192.0.2.9:443/TCP" in component.msg) == urgent


def test_saturation_is_by_family() -> None:
    six = PortUse(5, 17, "2001:db8::9", 53, "fd00::2")
    kernel = Kernel(PortForecast(USE, 200, 0.5, None), PortForecast(six, 200, 0.25, None))
    assert answers(kernel).saturation() == {"ipv4": 0.5, "ipv6": 0.25}


def test_use_of_ports_before_and_after_the_first_sweep() -> None:
    assert answers(Kernel()).nat().limit == 0
    sample = PortSample(40.0, 200, (USE,), 100, ((60, 7), (40, 0)))
    found = answers(Kernel(PortForecast(USE, 200, 0.5, None), sample=sample)).nat()
    assert (found.limit, found.total, found.entries, found.size, found.age) == (200, 100, 7, 1000, 10.0)
    assert [(one.peer, one.used, one.share) for one in found.peers] == [("192.0.2.9", 100, 0.5)]
    assert [(one.endpoint, one.used) for one in found.owners] == [(7, 60), (0, 40)]


def test_states_of_frontends_and_of_all_services() -> None:
    kernel, desired = Kernel(), Desired()
    told = answers(kernel, desired)
    assert told.realization(VIP) == ("pending", "")
    kernel.status[VIP] = Status(State.DONE, 0.0)
    assert told.realization(VIP) == ("realized", "")
    assert told.component().state is Health.OK
    kernel.status[VIP] = Status(State.ERROR, 0.0, "map services is full")
    assert told.realization(VIP) == ("error", "map services is full")
    desired.service_states.put(ServiceState(kind="Service", namespace="a", name="b", problems=("No.",)))
    assert "1 are not in the kernel, 1 objects have problems" in told.component().msg
    assert answers(kernel, enabled=False).component().state is Health.DISABLED


def words(name: str, key: Any, value: Any) -> tuple[Any, Any]:
    known = MapWords(cast(KernelState, Kernel()), Desired(), abi.layout())
    (told,) = known.tell(name, [{"key": key, "value": value}])
    return told["key"], told["value"]


def test_services_backends_and_slots_in_words() -> None:
    value = {"range": [{"first": 1, "count": 2}, {"first": 0, "count": 0}], "id": 9, "flags": 1 << 6 | 1}
    assert words("services", {"address": "10.96.0.7", "port": 80, "protocol": 6}, value) == (
        "10.96.0.7:80/TCP",
        {
            "service": "shop/web",
            "id": 9,
            "flags": ["MAGLEV", "REJECT"],
            "internal": {"first": 1, "count": 2, "backends": ["10.0.0.1:8080/TCP", "10.0.0.2:8080/TCP"]},
            "external": {"first": 0, "count": 0, "backends": []},
        },
    )
    gone = {"address": "fd00::1", "port": 53, "protocol": 17, "flags": 0}
    assert words("backends", 4, gone) == (4, {"backend": "[fd00::1]:53/UDP", "flags": ["GONE"]})
    assert words("slots", 8, 3) == (8, "10.0.0.3:8080/TCP")
    key = {"prefixlen": 32 + 96 + 8, "service": 9, "address": "10.0.0.0"}
    assert words("source_ranges", key, 1)[0] == {
        "service": "10.96.0.7:80/TCP (shop/web)",
        "prefix": "10.0.0.0/8",
    }


TUPLE = {
    "low": "10.0.0.5",
    "low_port": 41000,
    "high": "10.96.0.7",
    "high_port": 80,
    "protocol": 6,
    "zone": 1,
    "cluster": 0,
}


@pytest.mark.parametrize("turned", [False, True])
def test_flows_are_told_from_their_initiator(turned: bool) -> None:
    judged = 1 << 63 | 5 << 32 | 300
    side = {"judged": judged, "cookie": 2, "endpoint": 0, "match": 1, "flags": 0}
    value = {"side": [side, {**side, "judged": 0}], "flags": int(turned), "service": 9, "packets": [1, 0]}
    key, told = words("conntrack", {**TUPLE, "zone": 0}, value)
    ends = ["10.0.0.5:41000", "10.96.0.7:80"]
    assert [key["from"], key["to"]] == (ends[::-1] if turned else ends)
    assert (key["zone"], told["service"]) == ("pod", "10.96.0.7:80/TCP (shop/web)")
    assert told["egress"] == {"verdict": "denied", "peer": 300, "revision": 5, "endpoint": 0, "cookie": 2}
    assert "ingress" not in told


def test_translations_in_words() -> None:
    flow = {"backend_address": "10.0.0.9", "backend_port": 8080, "backend": 3, "service": 9, "flags": 1}
    key, told = words("service_flows", TUPLE, flow)
    assert (key["from"], key["to"]) == ("10.0.0.5:41000", "10.96.0.7:80")
    assert (told["backend"], told["flags"]) == ("10.0.0.9:8080", ["SEEN_REPLY"])
    ends = {"source": "10.0.0.5", "source_port": 41000, "destination": "fd00::1", "destination_port": 443}
    entry = {"address": "172.18.0.2", "port": 50000, "endpoint": 0, "service": 0}
    key, told = words("snat", {**ends, "protocol": 6, "way": 1, "cluster": 0}, entry)
    assert key == {"way": "forward", "protocol": "TCP", "from": "10.0.0.5:41000", "to": "[fd00::1]:443"}
    assert told["becomes"] == "172.18.0.2:50000"


def test_clients_that_stay_are_addresses_or_networks() -> None:
    value = {"backend": 3, "seen": 0, "revision": 4}
    key, told = words("affinity", {"client": "10.0.0.5", "service": 9}, value)
    assert (key["client"], told["backend"]) == ("10.0.0.5", "10.0.0.3:8080/TCP")
    key, _ = words("affinity", {"client": "ffff:ffff:ffff:ffff:110::", "service": 9}, value)
    assert key["client"] == "sockets of network namespace 4097"


def test_pods_that_a_redirect_leaves_alone() -> None:
    key = {"address": "10.96.0.7", "port": 80, "protocol": 6, "netns": 0, "endpoint": 7}
    assert words("skip_redirect", key, 1)[0] == {"frontend": "10.96.0.7:80/TCP", "endpoint": 7}
    told = words("skip_redirect", {**key, "endpoint": 0, "netns": 99}, 1)[0]
    assert told == {"frontend": "10.96.0.7:80/TCP", "network namespace": 99}


class Compared:
    """A verifier that finds what it is told to."""

    def __init__(self) -> None:
        self.rounds = 0
        self.begun = asyncio.Event()
        self.checked = self.differed = None
        self.differences: tuple[Difference, ...] = (
            Difference("services", "a", "b", "c"),
            Difference("backends", "1", "b", ""),
            Difference("backends", "2", "b", ""),
        )

    def round(self, clock: object) -> Any:
        self.rounds += 1
        self.begun.set()
        yield

    def repair(self) -> int:
        return len(self.differences)


def test_a_new_list_of_a_source_brings_the_next_round_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "GLANCE_SECONDS", 0.001)
    found, lists = Compared(), 0

    async def scenario() -> None:
        nonlocal lists
        compared = Verifying(cast(Verifier, found), lambda: None, SystemClock(), 3600.0, lambda: lists)
        task = asyncio.create_task(compared.run())  # noqa: TID251 - cancelled below
        await asyncio.sleep(0.02)
        assert found.rounds == 0
        lists += 1
        await asyncio.wait_for(found.begun.wait(), 60)
        task.cancel()

    asyncio.run(scenario())


def test_differences_are_counted_by_map() -> None:
    compared = Verifying(cast(Verifier, Compared()), lambda: None, SystemClock(), 60.0)
    report = asyncio.run(compared.verify(repair=True))
    assert (report.count, report.repaired, report.by_map) == (3, 3, {"services": 1, "backends": 2})
    assert compared.by_map == report.by_map
