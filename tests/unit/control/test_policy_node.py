"""The policy node tells the story row by row: who is isolated, what changes when, what a cookie says."""

from __future__ import annotations

from typing import Any

import msgspec

from cilia.control.policy.entries.resolve import decide
from cilia.control.policy.rules import TCP, Cidr, Cidrs
from cilia.model.endpoint import Endpoint, NamedPort, RemoteEndpoint
from cilia.model.identity import HOST, INIT, Identity
from cilia.model.ids import EndpointId, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import (
    CookieRow,
    Direction,
    Entry,
    EntryFlags,
    EntryKey,
    MatchKind,
    PolicyMode,
    SubjectPolicy,
)
from cilia.schema import CidrGroupRow
from tests.support.policy_cases import World, endpoint, pod, policy

WEB, DB, JOB = pod(300, "red", "web"), pod(301, "red", "db"), pod(302, "red", "job")
DEFAULT_IN, DEFAULT_OUT = EntryKey(Direction.INGRESS, 0), EntryKey(Direction.EGRESS, 0)


def cluster(*local: Identity, mode: PolicyMode = PolicyMode.DEFAULT) -> World:
    """Pods of three kinds, those `local` on this node."""
    world = World(mode)
    world.inputs.cluster_identities.replace([WEB, DB, JOB])
    for number, identity in enumerate(local, 1):
        world.desired.endpoints.put(endpoint(number, identity.id))
    return world.step()


def cnp(name: str, **spec: Any) -> Any:
    return policy("CiliumNetworkPolicy", name, {"endpointSelector": {}} | spec)


def named(world: World, subject: SubjectPolicy, peer: int, port: int = 80) -> tuple[bool, list[str]]:
    """Whether the peer gets in over TCP, and the rules the verdict names."""
    hit = decide(subject.entries, peer, Direction.INGRESS, TCP, port)
    assert hit is not None
    row = world.desired.cookies.get(hit[1].cookie)
    return hit[1].allow, [f"{ref.name} {ref.path}".strip() for ref in row.rules] if row else []


def test_without_policies_everything_is_allowed_by_default() -> None:
    row = cluster(WEB).subject(300)
    default = Entry(0, True, row.entries[DEFAULT_IN].cookie, MatchKind.NONE, EntryFlags.DEFAULT)
    assert row.entries == {DEFAULT_IN: default, DEFAULT_OUT: default}
    assert default.cookie == 0
    assert not row.ingress_enforced
    assert not row.egress_enforced


def test_default_deny_names_the_policies_that_isolate() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("one", ingress=[{}]))
    world.inputs.policies.put(cnp("two", ingress=[{}]))
    row = world.step().subject(300)
    assert named(world, row, DB.id) == (False, ["one spec", "two spec"])
    assert (row.ingress_enforced, row.egress_enforced) == (True, False)
    cookie = world.desired.cookies.get(row.entries[DEFAULT_IN].cookie)
    assert cookie is not None
    assert cookie.default


def test_a_verdict_names_its_rule() -> None:
    world = cluster(WEB)
    peers = [{"matchLabels": {"app": "db"}}, {"matchLabels": {"app": "job"}}]
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    world.inputs.policies.put(cnp("p", ingress=[{"fromEndpoints": peers, "toPorts": ports}]))
    row = world.step().subject(300)
    assert named(world, row, DB.id) == (True, ["p spec.ingress[0].fromEndpoints[0]"])
    assert named(world, row, JOB.id) == (True, ["p spec.ingress[0].fromEndpoints[1]"])
    assert named(world, row, WEB.id) == (False, ["p spec"])


def test_the_node_reaches_its_pods_unless_denied() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", ingress=[{}]))
    assert named(world.step(), world.subject(300), HOST) == (True, ["allow-localhost"])
    world.inputs.policies.put(cnp("q", ingressDeny=[{"fromEntities": ["host"]}]))
    assert named(world.step(), world.subject(300), HOST) == (False, ["q spec.ingressDeny[0].fromEntities[0]"])


def test_a_refused_policy_has_no_effect_and_says_why() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", endpointSelector={"matchLabels": {"a b": "c"}}, ingress=[{}]))
    row = world.step().subject(300)
    assert not row.ingress_enforced
    (state,) = world.desired.policy_states
    assert not state.valid
    assert state.problems[0].path == "spec.endpointSelector.matchLabels[a b]"
    assert state.problems[0].sentence.endswith("Until then the policy has no effect.")


def test_a_refused_rule_leaves_its_policy_in_force_and_says_why() -> None:
    world = cluster(WEB)
    database = {"fromEndpoints": [{"matchLabels": {"app": "db"}}]}
    world.inputs.policies.put(cnp("p", ingress=[database]))
    assert not world.step().subject(300).egress_enforced
    world.inputs.policies.put(cnp("p", ingress=[database], egress=[{"toFQDNs": [{"matchName": "a.org"}]}]))
    row = world.step().subject(300)
    assert (row.ingress_enforced, row.egress_enforced) == (True, True)
    assert named(world, row, 301) == (True, ["p spec.ingress[0].fromEndpoints[0]"])
    assert named(world, row, 302) == (False, ["p spec"])
    (state,) = world.desired.policy_states
    assert not state.valid
    assert state.problems[0].path == "spec.egress[0].toFQDNs"
    world.inputs.policies.put(cnp("p", ingress=[{}]))
    assert world.step().subject(300).ingress_enforced
    (state,) = world.desired.policy_states
    assert state.valid
    world.inputs.policies.delete(state.key)
    assert not world.step().subject(300).ingress_enforced
    assert len(world.desired.policy_states) == 0


def test_modes() -> None:
    world = cluster(WEB, mode=PolicyMode.ALWAYS)
    row = world.subject(300)
    assert (row.ingress_enforced, row.egress_enforced) == (True, True)
    assert world.desired.cookies.get(row.entries[DEFAULT_OUT].cookie) == CookieRow(
        row.entries[DEFAULT_OUT].cookie, (), default=True
    )
    world.inputs.policies.put(cnp("p", ingress=[{}]))
    world.policies.mode = PolicyMode.NEVER
    row = world.step().subject(300)
    assert len(row.entries) == 2
    assert all(entry.allow for entry in row.entries.values())
    world.policies.mode = PolicyMode.DEFAULT
    assert world.step().subject(300).ingress_enforced


def test_subjects_alike_share_their_entries() -> None:
    world = cluster(WEB, DB)
    world.inputs.policies.put(cnp("p", ingress=[{"fromEndpoints": [{}]}]))
    world.step()
    assert world.subject(300).entries is world.subject(301).entries
    assert world.subject(300).rules == world.subject(301).rules
    assert world.subject(300).subject != world.subject(301).subject


def test_an_identity_more_keeps_the_rules_and_the_untouched_rows() -> None:
    world = cluster(WEB, DB)
    selector = {"matchLabels": {"app": "web"}}
    peers = [{"matchLabels": {"app": "new"}}]
    world.inputs.policies.put(cnp("p", endpointSelector=selector, ingress=[{"fromEndpoints": peers}]))
    before = world.step().subject(300)
    cursor = world.desired.subjects.cursor()
    cursor.take()
    world.inputs.cluster_identities.put(pod(400, "red", "new"))
    after = world.step().subject(300)
    assert [row.identity for row in cursor.take()[0]] == [300]
    assert after.rules == before.rules
    assert after.entries.keys() - before.entries.keys() == {EntryKey(Direction.INGRESS, 400)}
    world.inputs.cluster_identities.delete(pod(400, "red", "new").id)
    assert world.step().subject(300).entries == before.entries


def test_the_last_endpoint_takes_its_subject_along() -> None:
    world = cluster(WEB, DB)
    world.desired.endpoints.put(endpoint(9, WEB.id))
    world.desired.endpoints.delete(endpoint(1, WEB.id).id)
    assert len(world.step().desired.subjects) == 2
    world.desired.endpoints.delete(endpoint(9, WEB.id).id)
    assert [row.identity for row in world.step().desired.subjects] == [DB.id]


def test_an_endpoint_without_identity_has_no_subject() -> None:
    world = cluster()
    world.desired.endpoints.put(endpoint(1, 0))
    assert len(world.step().desired.subjects) == 0


def test_an_endpoint_without_labels_is_isolated_until_a_policy_speaks_of_it() -> None:
    world = cluster()
    world.desired.endpoints.put(endpoint(1, INIT))
    row = world.step().subject(INIT)
    assert row.ingress_enforced and row.egress_enforced
    assert named(world, row, 300) == (False, [])
    assert named(world, row, HOST)[0], "its node reaches it"
    spec = {"endpointSelector": {"matchLabels": {"reserved:init": ""}}}
    rules = {"ingress": [{"fromEndpoints": [{"matchLabels": {"app": "web"}}]}]}
    world.inputs.policies.put(policy("CiliumClusterwideNetworkPolicy", "init", spec | rules))
    row = world.step().subject(INIT)
    assert [named(world, row, number)[0] for number in (300, 301)] == [True, False]
    init = Identity(INIT, row.labels)
    for peer, identity in ((300, WEB), (301, DB), (INIT, init)):
        for direction in Direction:
            hit = decide(row.entries, peer, direction, TCP, 80)
            assert hit is not None
            assert hit[1].allow == world.judge(row, identity, direction, TCP, 80).allow
    world.policies.mode = PolicyMode.NEVER
    assert named(world, world.step().subject(INIT), 301)[0]


def test_a_subject_whose_labels_are_unknown_is_cut_off() -> None:
    world = cluster(pod(999, "red", "web"))
    row = world.subject(999)
    assert row.labels == Labels()
    assert {key: entry.allow for key, entry in row.entries.items()} == {DEFAULT_IN: False, DEFAULT_OUT: False}
    world.inputs.cluster_identities.put(pod(999, "red", "web"))
    assert world.step().subject(999).entries[DEFAULT_IN].allow


def test_a_relabelled_identity_is_selected_anew() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", endpointSelector={"matchLabels": {"app": "db"}}, ingress=[{}]))
    assert not world.step().subject(300).ingress_enforced
    world.inputs.cluster_identities.put(Identity(WEB.id, DB.labels))
    assert world.step().subject(300).ingress_enforced


def test_rows_tell_the_revision_they_were_computed_for() -> None:
    world = cluster(WEB)
    first = world.subject(300).revision
    world.inputs.policies.put(cnp("p", ingress=[{}]))
    assert world.step().subject(300).revision == world.policies.revision > first
    selector = {"matchLabels": {"app": "elsewhere"}}
    world.inputs.policies.put(cnp("q", endpointSelector=selector, ingress=[{}]))
    row = world.step().subject(300)
    assert row.revision < world.policies.revision


def test_an_object_put_again_with_the_same_rules_changes_no_row() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", ingress=[{}]))
    before = world.step().subject(300)
    world.inputs.policies.put(cnp("p", ingress=[{}], description="said anew"))
    assert world.step().subject(300) is before


def test_restored_subject_numbers_are_kept() -> None:
    world = World(restored={EndpointId(1): SubjectId(7)})
    world.desired.endpoints.put(endpoint(1, WEB.id))
    assert world.step().subject(300).subject == 7


def test_peers_in_force_can_be_looked_at() -> None:
    world = cluster(WEB)
    peers = [{"matchLabels": {"app": "db"}}]
    world.inputs.policies.put(cnp("p", egress=[{"toEndpoints": peers}, {"toCIDR": ["10.0.0.0/8"]}]))
    found = world.step().policies.peers()
    assert set(found.values()) == {
        frozenset({DB.id}),
        frozenset({next(iter(world.identities.cidrs)).identity}),
    }


def with_ports(number: int, identity: int, *ports: NamedPort, audit: bool = False) -> Endpoint:
    return msgspec.structs.replace(endpoint(number, identity), named_ports=ports, audit=audit)


def rows_of(world: World, identity: int) -> dict[tuple[int, bool], SubjectPolicy]:
    """The rows of an identity by the number of its first named port and by audit."""
    return {
        (row.key.named_ports[0].port if row.key.named_ports else 0, row.key.audit): row
        for row in world.desired.subjects
        if row.identity == identity
    }


HTTP_ONLY = policy("NetworkPolicy", "named", {"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]})


def test_two_pods_of_one_identity_that_number_a_port_differently() -> None:
    world = cluster()
    for number, port in enumerate((80, 8080), 1):
        world.desired.endpoints.put(with_ports(number, WEB.id, NamedPort("http", port)))
    world.inputs.policies.put(HTTP_ONLY)
    rows = rows_of(world.step(), WEB.id)
    assert rows.keys() == {(80, False), (8080, False)}
    for port, other in ((80, 8080), (8080, 80)):
        row = rows[port, False]
        assert named(world, row, DB.id, port)[0]
        assert not named(world, row, DB.id, other)[0]
    assert rows[80, False].rules != rows[8080, False].rules


def test_ports_that_no_rule_speaks_of_do_not_part_their_entries() -> None:
    world = cluster()
    for number, port in enumerate((80, 8080), 1):
        world.desired.endpoints.put(with_ports(number, WEB.id, NamedPort("http", port)))
    world.inputs.policies.put(cnp("p", ingress=[{"fromEndpoints": [{}]}]))
    rows = rows_of(world.step(), WEB.id)
    assert rows[80, False].entries is rows[8080, False].entries


def test_a_port_name_in_egress_means_each_peers_own_numbers() -> None:
    world = cluster(WEB)
    ports = [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    world.inputs.policies.put(cnp("p", egress=[{"toEndpoints": [{}], "toPorts": ports}]))
    before = world.step().subject(300)

    def allowed(port: int) -> bool:
        hit = decide(world.subject(300).entries, DB.id, Direction.EGRESS, TCP, port)
        assert hit is not None
        return hit[1].allow

    assert not allowed(80)
    remote = RemoteEndpoint(
        namespace="red",
        name="db",
        identity=DB.id,
        node_ip="192.0.2.1",
        addresses=("10.0.0.1",),
        named_ports=(NamedPort("http", 80),),
    )
    world.inputs.remote_endpoints.put(remote)
    world.step()
    assert allowed(80)
    world.desired.endpoints.put(with_ports(7, DB.id, NamedPort("http", 8080)))
    world.step()
    assert allowed(80)
    assert allowed(8080)
    world.inputs.remote_endpoints.delete(("red", "db"))
    row = world.step().subject(300)
    assert not allowed(80)
    assert row.rules == before.rules
    assert row.epoch > before.epoch


def test_audit_of_an_endpoint_is_another_subject() -> None:
    world = cluster(WEB)
    world.desired.endpoints.put(with_ports(7, WEB.id, audit=True))
    world.inputs.policies.put(cnp("p", ingress=[{}]))
    rows = rows_of(world.step(), WEB.id)
    enforced, noted = (rows[0, audit].entries[DEFAULT_IN] for audit in (False, True))
    assert not enforced.allow
    assert not enforced.flags & EntryFlags.AUDIT
    assert noted.flags & EntryFlags.AUDIT
    assert noted.cookie == enforced.cookie
    assert rows[0, False].rules != rows[0, True].rules


def test_audit_of_the_node_may_change_at_any_time() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", ingress=[{}]))
    before = world.step().subject(300)
    world.policies.audit = True
    row = world.step().subject(300)
    assert row.entries[DEFAULT_IN].flags & EntryFlags.AUDIT
    assert row.rules != before.rules
    world.policies.audit = False
    assert world.step().subject(300).rules == before.rules


def test_audit_opens_nothing_to_those_whose_labels_are_unknown() -> None:
    world = cluster()
    world.policies.audit = True
    world.desired.endpoints.put(with_ports(1, 999, audit=True))
    world.step()
    (row,) = world.desired.subjects
    assert [(entry.allow, entry.flags & EntryFlags.AUDIT) for entry in row.entries.values()] == [
        (False, 0),
        (False, 0),
    ]


def test_a_relabelled_peer_is_another_epoch_a_new_one_is_not() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", ingress=[{"fromEndpoints": [{"matchLabels": {"app": "db"}}]}]))
    first = world.step().subject(300)
    world.inputs.cluster_identities.put(pod(400, "red", "db"))
    second = world.step().subject(300)
    assert second.epoch == first.epoch
    assert second.entries != first.entries
    world.inputs.cluster_identities.put(Identity(DB.id, JOB.labels))
    third = world.step().subject(300)
    assert third.epoch > second.epoch
    assert not named(world, third, DB.id)[0]


def test_what_stands_behind_a_group_is_matched() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", ingress=[{"fromCIDRSet": [{"cidrGroupRef": "g"}]}]))
    row = world.step().subject(300)
    assert row.ingress_enforced
    world.inputs.cidr_groups.put(CidrGroupRow(name="g", prefixes=("192.0.2.0/24",)))
    row = world.step().subject(300)
    (cidr,) = world.identities.cidrs
    assert named(world, row, cidr.identity) == (True, ["p spec.ingress[0].fromCIDRSet[0]"])
    world.inputs.cidr_groups.put(CidrGroupRow(name="g", prefixes=("198.51.100.0/24",)))
    row = world.step().subject(300)
    assert [peer for peer in {key.peer for key in row.entries} if peer >= 1 << 24] == [
        next(iter(world.identities.cidrs)).identity
    ]


def test_facts_are_a_snapshot() -> None:
    world = cluster(WEB)
    world.desired.endpoints.put(with_ports(7, WEB.id, NamedPort("http", 80)))
    world.inputs.policies.put(cnp("p", ingress=[{"fromCIDRSet": [{"cidrGroupRef": "g"}]}]))
    world.inputs.cidr_groups.put(CidrGroupRow(name="g", prefixes=("192.0.2.0/24",)))
    facts = world.step().policies.facts()
    assert [rule.peer for section in facts.sections for rule in section.rules] == [
        Cidrs((Cidr("192.0.2.0/24"),))
    ]
    assert facts.port_names == {WEB.id: frozenset({NamedPort("http", 80)})}
    assert facts.identities[WEB.id] == WEB.labels
    world.inputs.cluster_identities.delete(DB.id)
    world.step()
    assert DB.id in facts.identities


def test_a_number_that_comes_back_with_other_labels_is_another_epoch() -> None:
    world = cluster(WEB)
    world.inputs.policies.put(cnp("p", ingress=[{"fromEndpoints": [{"matchLabels": {"app": "db"}}]}]))
    first = world.step().subject(300)
    world.inputs.cluster_identities.delete(DB.id)
    world.step()
    world.inputs.cluster_identities.put(DB)
    second = world.step().subject(300)
    assert (second.epoch, second.entries) == (first.epoch, first.entries)
    world.inputs.cluster_identities.delete(JOB.id)
    world.step()
    world.inputs.cluster_identities.put(Identity(JOB.id, DB.labels))
    assert world.step().subject(300).epoch > second.epoch
