"""Settings of services, and which backends' sockets are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from cilia.apps.agent.balancing import SocketEnder, brain_settings, within
from cilia.apps.agent.kernel import hash_seed
from cilia.apps.agent.settings import AgentSettings
from cilia.control.services.settings import Mode
from cilia.model.node import NodeSettings
from cilia.model.service import Algorithm, Backend, Frontend, FrontendKind, Protocol, ServiceEntry
from cilia.schema import Desired, Inputs

TCP = Protocol.TCP
A, B, C = (Backend(f"10.0.0.{number}", 80, TCP) for number in (1, 2, 3))


def settings(**changes: object) -> AgentSettings:
    return AgentSettings(node_name="n1", state_dir=Path("/nowhere"), **changes)  # type: ignore[arg-type]


def test_defaults_are_the_brains_own() -> None:
    made = brain_settings(settings(), ["192.0.2.1"])
    assert (made.algorithm, made.mode, made.reject, made.enabled) == (Algorithm.RANDOM, Mode.SNAT, True, True)
    assert (made.node_ports, made.node_port_addresses) == ((30000, 32767), ())


def test_words_become_settings() -> None:
    made = brain_settings(
        settings(
            bpf_lb_algorithm="maglev",
            bpf_lb_mode="hybrid",
            service_no_backend_response="drop",
            node_port_range="20000-20010",
            nodeport_addresses="192.0.2.0/24, 2001:db8::/32",
            lrp_address_matcher_cidrs="169.254.0.1/16",
        ),
        ["192.0.2.1", "198.51.100.1", "2001:db8::1"],
    )
    assert (made.algorithm, made.mode, made.reject) == (Algorithm.MAGLEV, Mode.HYBRID, False)
    assert made.node_ports == (20000, 20010)
    assert made.node_port_addresses == ("192.0.2.1", "2001:db8::1")
    assert made.redirect_prefixes == ("169.254.0.0/16",)


def test_addresses_within_prefixes() -> None:
    assert list(within(["10.0.0.1", "::1"], "10.0.0.0/8")) == ["10.0.0.1"]
    assert list(within(["10.0.0.1"], "")) == []


def test_one_text_is_one_seed() -> None:
    assert hash_seed("") == NodeSettings().hash_seed
    assert hash_seed("a") == hash_seed("a") != hash_seed("b")
    assert 0 <= hash_seed("a") < 1 << 32


class Kernel:
    """Notes whose sockets it is to end."""

    def __init__(self) -> None:
        self.ended: list[list[Backend]] = []
        self.left: list[tuple[int, Backend]] = []

    def end_sockets(
        self, networks: Iterable[str], backends: Iterable[Backend], left: Iterable[tuple[Frontend, Backend]]
    ) -> int:
        self.ended.append(sorted(backends))
        self.left += [(frontend.port, backend) for frontend, backend in left]
        return 1


class Story:
    """Services come and go; what becomes of the sockets of their backends."""

    def __init__(self) -> None:
        self.desired = Desired()
        self.kernel = Kernel()
        self.ender = SocketEnder(Inputs(), self.desired, self.kernel)  # type: ignore[arg-type]

    def serve(self, port: int, *backends: Backend, draining: tuple[Backend, ...] = ()) -> None:
        protocol = backends[0].protocol if backends else TCP
        self.desired.service_entries.put(
            ServiceEntry(
                frontend=Frontend("10.96.0.1", port, protocol),
                kind=FrontendKind.CLUSTER_IP,
                internal=backends,
                external=backends,
                draining=draining,
            )
        )

    def withdraw(self, port: int, protocol: Protocol = TCP) -> None:
        self.desired.service_entries.delete(Frontend("10.96.0.1", port, protocol))

    def ended(self) -> list[list[Backend]]:
        """What was ended since."""
        self.ender.look()
        asyncio.run(self.ender.end())
        found, self.kernel.ended = self.kernel.ended, []
        return found


def test_sockets_end_with_the_last_use_of_their_backend() -> None:
    story = Story()
    story.serve(80, A, B)
    story.serve(81, B, C)
    assert story.ended() == []
    story.serve(80, B)
    assert story.ended() == [[A]]
    story.serve(80)
    assert story.ended() == []
    story.withdraw(81)
    assert story.ended() == [[B, C]]


def test_those_that_drain_are_left_alone() -> None:
    story = Story()
    story.serve(80, A, B)
    story.ended()
    story.serve(80, B, draining=(A,))
    assert story.ended() == []
    story.serve(80, B)
    assert story.ended() == [[A]]


def test_a_backend_that_comes_back_at_once_keeps_its_sockets() -> None:
    story = Story()
    story.serve(80, A)
    story.ended()
    story.withdraw(80)
    story.ender.look()
    story.serve(80, Backend(A.address, A.port, TCP, weight=5))
    assert story.ended() == []


def test_backends_that_went_while_no_agent_looked_are_found() -> None:
    story = Story()
    story.serve(80, A)
    story.ended()
    story.ender._recall([A, B])
    assert story.ended() == [[B]]


def test_datagrams_leave_a_backend_with_their_own_frontend() -> None:
    """Blue and green: both serve under other names, too."""
    story = Story()
    blue, green = (Backend(f"10.0.0.{number}", 53, Protocol.UDP) for number in (1, 2))
    for port, one in ((80, blue), (81, blue), (82, green)):
        story.serve(port, one)
    assert story.ended() == []
    story.serve(80, green)
    assert (story.ended(), story.kernel.left) == ([[]], [(80, blue)])
    story.serve(82, blue, draining=(green,))
    assert story.ended() == []
    story.withdraw(80, Protocol.UDP)
    assert (story.ended(), story.kernel.left) == ([[]], [(80, blue), (80, green)])
    story.withdraw(81, Protocol.UDP)
    story.serve(81, blue)
    assert story.ended() == []
    story.withdraw(82, Protocol.UDP)
    assert (story.ended(), story.kernel.left[2:]) == ([[green]], [(82, blue)])


def test_connections_stay_with_a_backend_that_others_have() -> None:
    story = Story()
    for port, one in ((80, A), (81, A), (82, B)):
        story.serve(port, one)
    story.ended()
    story.serve(80, B)
    assert story.ended() == []
