"""Endpoints: identity by labels, grace on change, and no entry without a policy."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cilia.control.endpoints import EndpointNode, EntryNode
from cilia.model.endpoint import HOST_ENDPOINT, Attachment, EndpointState, NamedPort
from cilia.model.identity import HOST, INIT, Identity
from cilia.model.ids import Cookie, EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Label, Labels
from cilia.model.node import Node
from cilia.model.policy import Entry, EntryKey, MatchKind, SubjectKey, SubjectPolicy
from cilia.schema import Desired, EndpointOptions, Inputs, NamespaceRow, PodRow


def attachment(identifier: int = 1, pod: str = "web") -> Attachment:
    return Attachment(
        id=EndpointId(identifier),
        container_id=f"c{identifier}",
        interface="eth0",
        netns="/proc/1/ns/net",
        host_interface=f"lxc{identifier}",
        ifindex=10 + identifier,
        mac="02:00:00:00:00:01",
        host_mac="02:00:00:00:00:02",
        ipv4=f"10.0.1.{identifier}",
        namespace="demo",
        pod=pod,
    )


def pod(role: str) -> PodRow:
    return PodRow(namespace="demo", name="web", labels={"role": role})


def labels(role: str) -> Labels:
    return Labels.kubernetes("demo", {"role": role}, {"team": "blue"})


def build(grace: float = 0.0) -> tuple[Inputs, Desired, EndpointNode]:
    inputs, desired = Inputs(), Desired()
    inputs.namespaces.put(NamespaceRow(name="demo", labels={"team": "blue"}))
    return inputs, desired, EndpointNode(inputs, desired, grace=grace)


def test_an_endpoint_waits_for_its_identity_and_says_which_it_wants() -> None:
    inputs, desired, node = build()
    inputs.pods.put(pod("web"))
    inputs.attachments.put(attachment())
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and row.state is EndpointState.WAITING_FOR_IDENTITY
    assert list(node.wanted) == [labels("web")]
    inputs.cluster_identities.put(Identity(IdentityId(400), labels("web")))
    inputs.cluster_identities.put(Identity(IdentityId(300), labels("web")))
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None
    assert (row.state, row.identity) == (EndpointState.READY, 300)
    assert not node.wanted


def test_a_relabelled_pod_keeps_its_identity_for_the_grace() -> None:
    inputs, desired, node = build(grace=5.0)
    inputs.pods.put(pod("web"))
    inputs.attachments.put(attachment())
    inputs.cluster_identities.put(Identity(IdentityId(300), labels("web")))
    inputs.cluster_identities.put(Identity(IdentityId(301), labels("db")))
    node.step(0.0)
    inputs.pods.put(pod("db"))
    node.step(1.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and row.identity == 300
    assert node.next_deadline() == 6.0
    node.step(6.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and row.identity == 301
    assert node.next_deadline() is None


def test_a_container_without_a_pod_is_init() -> None:
    inputs, desired, node = build()
    inputs.attachments.put(attachment(pod=""))
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and (row.identity, row.state) == (INIT, EndpointState.READY)


def test_an_endpoint_whose_pod_nobody_knows_speaks_for_nobody() -> None:
    inputs, desired, node = build()
    inputs.attachments.put(attachment())
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and (row.identity, row.state) == (0, EndpointState.WAITING_FOR_IDENTITY)
    assert not node.wanted


def test_a_pod_that_goes_before_its_container_keeps_its_identity() -> None:
    inputs, desired, node = build()
    inputs.pods.put(pod("web"))
    inputs.attachments.put(attachment())
    inputs.cluster_identities.put(Identity(IdentityId(300), labels("web")))
    node.step(0.0)
    inputs.pods.delete(("demo", "web"))
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and row.identity == 300


def test_a_namespace_label_reaches_its_pods() -> None:
    inputs, desired, node = build()
    inputs.pods.put(pod("web"))
    inputs.attachments.put(attachment())
    inputs.cluster_identities.put(Identity(IdentityId(300), labels("web")))
    node.step(0.0)
    inputs.namespaces.put(NamespaceRow(name="demo", labels={"team": "red"}))
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and row.state is EndpointState.WAITING_FOR_IDENTITY
    assert row.identity == 300


def test_no_entry_without_identity_or_policy() -> None:
    inputs, desired, node = build()
    entries = EntryNode(desired)
    inputs.pods.put(pod("web"))
    inputs.attachments.put(attachment())
    node.step(0.0)
    entries.step()
    assert len(desired.endpoint_entries) == 0
    inputs.cluster_identities.put(Identity(IdentityId(300), labels("web")))
    node.step(0.0)
    entries.step()
    assert len(desired.endpoint_entries) == 0
    desired.subjects.put(
        SubjectPolicy(
            subject=SubjectId(3),
            key=SubjectKey(IdentityId(300)),
            labels=labels("web"),
            rules="",
            revision=Revision(1),
            entries={},
            ingress_enforced=False,
            egress_enforced=False,
        )
    )
    entries.step()
    entry = desired.endpoint_entries.get(EndpointId(1))
    assert entry is not None and (entry.identity, entry.subject) == (300, 3)
    inputs.attachments.delete(EndpointId(1))
    node.step(0.0)
    entries.step()
    assert len(desired.endpoint_entries) == 0


def policy(
    key: SubjectKey, number: int = 3, entries: Mapping[EntryKey, Entry] | None = None
) -> SubjectPolicy:
    return SubjectPolicy(
        subject=SubjectId(number),
        key=key,
        labels=labels("web"),
        rules="",
        revision=Revision(1),
        entries=dict(entries or {}),
        ingress_enforced=False,
        egress_enforced=False,
    )


def verdict(allow: bool) -> Entry:
    return Entry(precedence=0, allow=allow, cookie=Cookie(0), match=MatchKind.ALL)


DEFAULTS = {EntryKey(direction, 0): verdict(True) for direction in (1, 2)}


def test_endpoints_of_one_identity_find_their_policy_by_ports_and_audit() -> None:
    inputs, desired, node = build()
    entries = EntryNode(desired)
    ports = (NamedPort("web", 8080), NamedPort("admin", 9000))
    inputs.pods.put(PodRow(namespace="demo", name="web", labels={"role": "web"}, named_ports=ports))
    inputs.attachments.put(attachment())
    inputs.cluster_identities.put(Identity(IdentityId(300), labels("web")))
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and row.named_ports == tuple(sorted(ports))
    desired.subjects.put(policy(SubjectKey(IdentityId(300))))
    desired.subjects.put(policy(SubjectKey(IdentityId(300), row.named_ports), 4))
    desired.subjects.put(policy(SubjectKey(IdentityId(300), row.named_ports, True), 5))
    entries.step()
    entry = desired.endpoint_entries.get(EndpointId(1))
    assert entry is not None and entry.subject == 4
    inputs.endpoint_options.put(EndpointOptions(endpoint=EndpointId(1), audit=True))
    node.step(0.0)
    entries.step()
    entry = desired.endpoint_entries.get(EndpointId(1))
    assert entry is not None and entry.subject == 5


AUDITED: dict[str, tuple[bool | None, dict[str, str], bool]] = {
    "nobody says anything": (None, {}, False),
    "the namespace": (None, {"policy.cilia.io/audit": "true"}, True),
    "the switch against the namespace": (False, {"policy.cilia.io/audit": "true"}, False),
    "the switch alone": (True, {}, True),
    "something that is no answer": (None, {"policy.cilia.io/audit": "maybe"}, False),
}


@pytest.mark.parametrize("case", AUDITED.values(), ids=list(AUDITED))
def test_the_switch_or_the_namespace_says_whether_an_endpoint_is_in_audit(
    case: tuple[bool | None, dict[str, str], bool],
) -> None:
    switch, of_namespace, expected = case
    inputs, desired, node = build()
    inputs.attachments.put(attachment())
    inputs.cluster_identities.put(Identity(IdentityId(300), labels("web")))
    inputs.pods.put(pod("web"))
    node.step(0.0)
    inputs.namespaces.put(NamespaceRow(name="demo", labels={"team": "blue"}, annotations=of_namespace))
    inputs.endpoint_options.put(EndpointOptions(endpoint=EndpointId(1), audit=switch))
    node.step(0.0)
    row = desired.endpoints.get(EndpointId(1))
    assert row is not None and row.audit is expected


def host_world() -> tuple[Inputs, Desired, EndpointNode]:
    inputs, desired = Inputs(), Desired()
    own = Node(name="node-1", addresses=("192.0.2.1", "2001:db8::1"), router_addresses=("10.0.1.1",))
    desired.identities.put(Identity(HOST, Labels.of([Label("reserved", "host")])))
    return inputs, desired, EndpointNode(inputs, desired, own=own)


def test_the_host_is_an_endpoint_with_the_labels_of_its_identity() -> None:
    inputs, desired, node = host_world()
    node.step(0.0)
    row = desired.endpoints.get(HOST_ENDPOINT)
    assert row is not None and (row.identity, row.state) == (HOST, EndpointState.READY)
    assert row.addresses == ("192.0.2.1", "2001:db8::1")
    named = Labels.of([Label("reserved", "host"), Label("k8s", "zone", "a")])
    desired.identities.put(Identity(HOST, named))
    inputs.endpoint_options.put(EndpointOptions(endpoint=HOST_ENDPOINT, audit=True))
    node.step(0.0)
    row = desired.endpoints.get(HOST_ENDPOINT)
    assert row is not None and row.labels == named and row.audit
    revision = desired.endpoints.revision
    node.step(0.0)
    assert desired.endpoints.revision == revision
    assert not node.wanted


JUDGED: dict[str, tuple[dict[EntryKey, Entry], bool]] = {
    "nothing is said": (DEFAULTS, False),
    "a rule denies": (DEFAULTS | {EntryKey(1, 256): verdict(False)}, True),
    "a rule allows": (DEFAULTS | {EntryKey(1, 256): verdict(True)}, True),
    "isolated without a rule": (DEFAULTS | {EntryKey(1, 0): verdict(False)}, True),
}


@pytest.mark.parametrize("case", JUDGED.values(), ids=list(JUDGED))
@pytest.mark.parametrize("firewall", [True, False])
def test_the_host_is_judged_once_a_policy_speaks_of_it(
    case: tuple[dict[EntryKey, Entry], bool], firewall: bool
) -> None:
    entries, judged = case
    _, desired, node = host_world()
    node.step(0.0)
    writer = EntryNode(desired, host_firewall=firewall)
    desired.subjects.put(policy(SubjectKey(HOST), 7, entries))
    writer.step()
    entry = desired.endpoint_entries.get(HOST_ENDPOINT)
    assert entry is not None and (entry.subject, entry.flags, entry.ifindex) == (7, 1, 0)
    assert entry.judged is (judged and firewall)
