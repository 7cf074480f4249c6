"""The host's endpoint in the kernel: one row behind all its addresses, asked only when its policy stands."""

from __future__ import annotations

import msgspec

from cilia.dataplane.loader import Dataplane
from cilia.dataplane.order import KernelState
from cilia.model.endpoint import HOST_ENDPOINT, EndpointEntry
from cilia.model.identity import HOST
from cilia.model.ids import EndpointId, SubjectId
from cilia.model.node import NodeSettings
from cilia.model.policy import EntryKey
from cilia.schema import Desired
from tests.support.dataplane import (
    allow,
    dataplane,
    deny,
    endpoint,
    kernel_state,
    loaded_once,
    needs_kernel,
    subject,
)

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel

ADDRESSES = ["10.0.0.1", "192.0.2.1", "2001:db8::1"]
RULES = {EntryKey(1, 0): deny(), EntryKey(2, 0): allow()}


def host(number: int = 1, judged: bool = True) -> EndpointEntry:
    return EndpointEntry(
        id=HOST_ENDPOINT,
        ifindex=0,
        identity=HOST,
        subject=SubjectId(number),
        mac="",
        host_mac="",
        flags=1,
        judged=judged,
    )


def hosts(state: KernelState) -> dict[str, tuple[int, int, int]]:
    """Address to (number, identity, subject) of the host's rows."""
    return {
        row["key"]: (row["value"]["id"], row["value"]["identity"], row["value"]["subject"])
        for row in state.dump("endpoints")
        if row["value"]["flags"] & 1
    }


def test_all_addresses_carry_the_hosts_row(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    state.set_node(NodeSettings(), ADDRESSES[:2])
    assert hosts(state) == dict.fromkeys(ADDRESSES[:2], (HOST_ENDPOINT, 1, 0))
    assert not state.settings.host_policy
    desired.subjects.put(subject(4, "r1", RULES))
    desired.endpoint_entries.put(host(4))
    desired.endpoint_entries.put(endpoint(5, "10.0.0.5", subject=4))
    state.apply(1.0)
    assert state.errors() == [] and state.realised(HOST_ENDPOINT)
    assert hosts(state) == dict.fromkeys(ADDRESSES[:2], (HOST_ENDPOINT, 1, 4))
    assert state.settings.host_policy
    assert [row["key"] for row in state.dump("ifaces")] == [1005]
    state.set_hosts(ADDRESSES[1:])
    assert hosts(state) == dict.fromkeys(ADDRESSES[1:], (HOST_ENDPOINT, 1, 4))


def test_a_host_no_policy_speaks_of_is_not_asked(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    state.set_node(NodeSettings(), ADDRESSES)
    desired.subjects.put(subject(4, "r1", RULES))
    desired.endpoint_entries.put(host(4))
    state.apply(1.0)
    assert state.settings.host_policy
    desired.endpoint_entries.put(host(4, judged=False))
    state.apply(2.0)
    assert not state.settings.host_policy
    desired.endpoint_entries.put(host(4))
    state.apply(3.0)
    desired.endpoint_entries.delete(HOST_ENDPOINT)
    state.apply(4.0)
    assert not state.settings.host_policy
    assert set(hosts(state)) == set(ADDRESSES)


def test_a_host_whose_policy_does_not_fit_stays_open(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    state.set_node(NodeSettings(), ADDRESSES)
    too_many = {EntryKey(1, peer): allow() for peer in range(1, 20_000)}
    desired.subjects.put(subject(4, "r1", too_many))
    desired.endpoint_entries.put(host(4))
    state.apply(1.0)
    assert [error.table for error in state.errors()] == ["subjects"]
    assert not state.settings.host_policy
    desired.subjects.put(subject(4, "r2", RULES))
    state.apply(2.0)
    assert state.settings.host_policy


def test_new_settings_and_a_new_agent_leave_the_hosts_policy_in_force(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    state.set_node(NodeSettings(), ADDRESSES)
    desired.subjects.put(subject(4, "r1", RULES))
    desired.endpoint_entries.put(host(4))
    state.apply(1.0)
    state.settings.write(NodeSettings(mtu=1300))
    assert state.settings.host_policy
    successor = kernel_state(dataplane, Desired())
    successor.set_node(NodeSettings(), [*ADDRESSES, "192.0.2.2"])
    assert successor.settings.host_policy
    assert hosts(successor) == dict.fromkeys([*ADDRESSES, "192.0.2.2"], (HOST_ENDPOINT, 1, 4))


def test_the_host_is_nobody_to_prune(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    state.set_node(NodeSettings(), ADDRESSES)
    desired.subjects.put(subject(4, "r1", RULES))
    desired.endpoint_entries.put(host(4))
    desired.endpoint_entries.put(msgspec.structs.replace(endpoint(6, "10.0.0.6"), subject=SubjectId(4)))
    state.apply(1.0)
    for table in desired.tables():
        table.synced = True
    assert state.prune() == 0
    assert set(hosts(state)) == set(ADDRESSES)
    assert state.realised(EndpointId(6))
