"""Endpoints: identity by labels, grace on change, and no entry without a policy."""

from __future__ import annotations

from cilia.control.endpoints import EndpointNode, EntryNode
from cilia.model.endpoint import Attachment, EndpointState
from cilia.model.identity import INIT, Identity
from cilia.model.ids import EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import SubjectKey, SubjectPolicy
from cilia.schema import Desired, Inputs, NamespaceRow, PodRow


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
