"""What the tables show to have happened, as it stands in Hubble's log."""

from __future__ import annotations

import asyncio

import msgspec

from cilia.apps.agent.agent_events import AgentEventWriter, policy_labels, rule_count
from cilia.dataplane.order import TableError
from cilia.hubble.agent_events import (
    AddressChanged,
    EndpointChanged,
    EndpointRegenerated,
    EventLog,
    Note,
    PolicyChanged,
    Started,
)
from cilia.kit.clock import ManualClock
from cilia.model.endpoint import Attachment, Endpoint, EndpointEntry
from cilia.model.ids import EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.node import IpcacheEntry
from cilia.model.policy import PolicyObject, SubjectKey, SubjectPolicy
from cilia.schema import Desired, Inputs


class Kernel:
    """A data plane that does what it is told."""

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.failing: list[TableError] = []

    def realised(self, endpoint: EndpointId) -> bool:
        return int(endpoint) in self.done

    def errors(self) -> list[TableError]:
        return self.failing


class World:
    """Tables, and who writes down what happens in them."""

    def __init__(self) -> None:
        self.inputs, self.desired, self.kernel = Inputs(), Desired(), Kernel()
        self.log = EventLog()
        self.revision = 1
        self.writer = AgentEventWriter(
            self.log, self.inputs, self.desired, self.kernel, lambda: self.revision, ManualClock()
        )
        self._told = 0

    def start(self) -> None:
        self.writer.start()
        self._told = self.log.head

    def news(self) -> list[Note]:
        self.writer.take()
        found = [entry.note for entry in self.log.since(self._told)]
        self._told = self.log.head
        return found


def endpoint(number: int) -> Endpoint:
    attachment = Attachment(
        id=EndpointId(number), container_id="c", interface="eth0", netns="/n", host_interface="l", ifindex=1,
        mac="", host_mac="", namespace="demo", pod=f"web-{number}",
    )  # fmt: skip
    return Endpoint(attachment=attachment)


def entry(number: int, subject: int) -> EndpointEntry:
    return EndpointEntry(
        id=EndpointId(number), ifindex=1, identity=IdentityId(7), subject=SubjectId(subject), mac="",
        host_mac="",
    )  # fmt: skip


def subject(number: int, rules: str = "a") -> SubjectPolicy:
    return SubjectPolicy(
        subject=SubjectId(number), key=SubjectKey(IdentityId(7)), labels=Labels(), rules=rules,
        revision=Revision(1), entries={}, ingress_enforced=False, egress_enforced=False,
    )  # fmt: skip


def policy(name: str) -> PolicyObject:
    return PolicyObject(kind="CiliumNetworkPolicy", namespace="demo", name=name)


def test_what_is_there_at_the_start_is_no_news() -> None:
    world = World()
    world.desired.endpoints.put(endpoint(1))
    world.inputs.policies.put(policy("old"))
    world.desired.ipcache.put(IpcacheEntry(prefix="10.0.0.1/32", identity=7))
    world.start()
    (first,) = world.log.since(0)
    assert isinstance(first.note, Started)
    assert world.news() == []
    world.desired.endpoints.delete(EndpointId(1))
    (gone,) = world.news()
    assert gone == EndpointChanged(id=1, namespace="demo", pod="web-1", deleted=True)


def test_an_endpoint_comes_is_enforced_changes_and_goes() -> None:
    world = World()
    world.start()
    world.desired.endpoints.put(endpoint(1))
    world.desired.endpoint_entries.put(entry(1, 5))
    assert world.news() == [EndpointChanged(id=1, namespace="demo", pod="web-1")]
    world.kernel.failing = [TableError("subjects", "5", "no room", 0.0)]
    assert world.news() == [EndpointRegenerated(id=1, error="no room")]
    assert world.news() == []
    world.kernel.done.add(1)
    assert world.news() == [EndpointRegenerated(id=1)]
    world.desired.subjects.put(subject(5))
    world.desired.subjects.put(subject(6))
    assert world.news() == [EndpointRegenerated(id=1)]
    # An identity that comes changes entries, not rules.
    world.desired.subjects.put(msgspec.structs.replace(subject(5), ingress_enforced=True))
    assert world.news() == []
    world.desired.subjects.put(subject(5, rules="b"))
    assert world.news() == [EndpointRegenerated(id=1)]
    world.desired.endpoints.delete(EndpointId(1))
    assert world.news() == [EndpointChanged(id=1, namespace="demo", pod="web-1", deleted=True)]


def test_policies_come_and_go_with_labels_and_revision() -> None:
    world = World()
    world.start()
    world.revision = 9
    world.inputs.policies.put(policy("web"))
    labels = policy_labels(("CiliumNetworkPolicy", "demo", "web"))
    assert world.news() == [PolicyChanged(labels=labels, revision=9, rules=0)]
    assert labels == (
        "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy",
        "k8s:io.cilium.k8s.policy.name=web",
        "k8s:io.cilium.k8s.policy.namespace=demo",
    )
    world.inputs.policies.delete(("CiliumNetworkPolicy", "demo", "web"))
    assert world.news() == [PolicyChanged(labels=labels, revision=9, rules=0, deleted=True)]
    # What came and went unseen was nothing.
    world.inputs.policies.put(policy("brief"))
    world.inputs.policies.delete(("CiliumNetworkPolicy", "demo", "brief"))
    assert world.news() == []


def test_rules_of_an_object_are_counted() -> None:
    class Body(msgspec.Struct):
        spec: object = None
        specs: tuple[object, ...] | None = None

    row = policy("x")
    assert rule_count(row) == 0
    assert rule_count(msgspec.structs.replace(row, body=Body(spec=object()))) == 1
    assert rule_count(msgspec.structs.replace(row, body=Body(spec=object(), specs=(1, 2)))) == 3


def test_addresses_tell_what_they_were() -> None:
    world = World()
    world.start()
    row = IpcacheEntry(prefix="10.0.0.1/32", identity=7, tunnel_endpoint="192.0.2.1", namespace="a", pod="p")
    world.desired.ipcache.put(row)
    world.news()
    moved = msgspec.structs.replace(row, identity=8, tunnel_endpoint="192.0.2.2")
    world.desired.ipcache.put(moved)
    assert world.news() == [
        AddressChanged(
            prefix="10.0.0.1/32", identity=8, old_identity=7, host="192.0.2.2", old_host="192.0.2.1",
            namespace="a", pod="p",
        )
    ]  # fmt: skip
    world.desired.ipcache.put(msgspec.structs.replace(moved, flags=1))
    assert world.news() == []
    world.desired.ipcache.delete("10.0.0.1/32")
    (gone,) = world.news()
    assert isinstance(gone, AddressChanged) and gone.deleted and gone.identity == 8


def test_many_changes_are_told_in_portions() -> None:
    async def story() -> None:
        world = World()
        world.start()
        task = asyncio.ensure_future(world.writer.run())
        for number in range(2000):
            world.desired.ipcache.put(
                IpcacheEntry(prefix=f"10.0.{number // 256}.{number % 256}/32", identity=7)
            )
        world.writer.look()
        await asyncio.sleep(0)
        assert 0 < world.log.head < 2000
        for _ in range(10):
            await asyncio.sleep(0)
        assert world.log.head == 2001
        task.cancel()

    asyncio.run(story())
