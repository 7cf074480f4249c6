"""What a policy object means, read from YAML as its author writes it; what it can't mean yet is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cilia.control.policy.dialects.parse import RuleBook, parse
from cilia.control.policy.rules import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Action,
    Cidr,
    CidrGroup,
    Parsed,
    PortName,
    Selector,
    ServicePeer,
    equals,
)
from cilia.model.endpoint import NamedPort
from cilia.model.identity import Identity
from cilia.model.policy import Direction, PolicyObject, PolicyProblem
from tests.support.policy_reading import (
    API,
    DB,
    FAR,
    HOST,
    IN,
    JOB,
    NODE,
    OUT,
    PREFIX,
    WEB,
    WORLD4,
    allows,
    ccnp,
    cnp,
    netpol,
    node,
    who,
)
from tests.support.policy_reading import written as policy


class TestNetworkPolicy:
    def test_without_types_and_rules_it_isolates_ingress_only(self) -> None:
        parsed = netpol("{podSelector: {}}")
        assert who(parsed) == []
        assert len(who(parsed, direction=OUT)) == 5
        assert parsed.sections[0].isolates == (IN,)

    @pytest.mark.parametrize(
        ("spec", "isolates"),
        [
            ("{podSelector: {}, egress: []}", (IN,)),
            ("{podSelector: {}, egress: [{}]}", (IN, OUT)),
            ("{podSelector: {}, policyTypes: [Egress]}", (OUT,)),
            ("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}", (OUT,)),
            ("{podSelector: {}, policyTypes: []}", (IN,)),
        ],
    )
    def test_types(self, spec: str, isolates: tuple[Direction, ...]) -> None:
        (section,) = netpol(spec).sections
        assert section.isolates == isolates
        assert all(rule.direction in isolates for rule in section.rules)

    def test_it_selects_pods_of_its_own_namespace(self) -> None:
        parsed = netpol("{podSelector: {matchLabels: {app: web}}}")
        assert not allows(parsed, DB)
        assert allows(parsed, WEB, subject=DB)
        assert allows(parsed, WEB, subject=JOB)

    @pytest.mark.parametrize("field", ["{}", "{from: []}", "{ports: []}", "{from: [], ports: []}"])
    def test_absent_and_empty_restrict_nothing(self, field: str) -> None:
        assert len(who(netpol(f"{{podSelector: {{}}, ingress: [{field}]}}"))) == 5

    @pytest.mark.parametrize(
        ("peer", "expected"),
        [
            ("{podSelector: {}}", [WEB, DB]),
            ("{podSelector: {matchLabels: {app: db}}}", [DB]),
            ("{namespaceSelector: {}}", [WEB, DB, JOB]),
            ("{namespaceSelector: {matchLabels: {team: b}}}", [JOB]),
            ("{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}", []),
            ("{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [r]}]}}", [JOB]),
            ("{namespaceSelector: {}, podSelector: {matchLabels: {app: job}}}", [JOB]),
            ("{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}", [WEB]),
            ("{podSelector: {matchExpressions: [{key: app, operator: In, values: [db, job]}]}}", [DB]),
            ("{ipBlock: {cidr: 0.0.0.0/0}}", [WORLD4]),
        ],
    )
    def test_peers(self, peer: str, expected: list[Identity]) -> None:
        assert who(netpol(f"{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}")) == expected

    def test_a_block_less_its_exceptions(self) -> None:
        parsed = netpol(
            "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}"
        )
        assert allows(parsed, PREFIX["10.0.0.0/8"], direction=OUT)
        assert not allows(parsed, PREFIX["10.1.0.0/16"], direction=OUT)
        assert not allows(parsed, PREFIX["10.1.2.0/24"], direction=OUT)
        assert not allows(parsed, WORLD4, direction=OUT)
        assert parsed.prefixes == {"10.0.0.0/8", "10.1.0.0/16"}

    def test_ports(self) -> None:
        parsed = netpol(
            "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 90, endPort: 95, protocol: UDP},"
            " {protocol: SCTP}]}]}"
        )
        assert allows(parsed, DB, 80)
        assert not allows(parsed, DB, 80, protocol=UDP)
        assert [allows(parsed, DB, port, protocol=UDP) for port in (89, 90, 95, 96)] == [0, 1, 1, 0]
        assert allows(parsed, DB, 7, protocol=SCTP)
        assert not allows(parsed, DB, 8, protocol=ICMP)

    @pytest.mark.parametrize(
        ("spec", "path", "sentence"),
        [
            ("ingress: [{ports: [{port: Web}]}]", "spec.ingress[0].ports[0].port", "no name of a port"),
            ("ingress: [{ports: [{port: a--b}]}]", "spec.ingress[0].ports[0].port", "no name of a port"),
            ("ingress: [{ports: [{port: '80'}]}]", "spec.ingress[0].ports[0].port", "no name of a port"),
            ("ingress: [{ports: [{port: web, endPort: 9}]}]", "spec.ingress[0].ports[0].endPort", "no range"),
            ("ingress: [{ports: [{endPort: 9}]}]", "spec.ingress[0].ports[0].endPort", "needs port"),
            ("ingress: [{ports: [{port: 9, endPort: 8}]}]", "spec.ingress[0].ports[0].endPort", "below"),
            ("ingress: [{from: [{}]}]", "spec.ingress[0].from[0]", "names nobody"),
            (
                "egress: [{to: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
                "spec.egress[0].to[0]",
                "two peers",
            ),
            ("egress: [{to: [{ipBlock: {cidr: ten}}]}]", "spec.egress[0].to[0].ipBlock.cidr", "'ten'"),
            (
                "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]",
                "spec.egress[0].to[0].ipBlock.except[0]",
                "not within",
            ),
            (
                "egress: [{to: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]",
                "spec.egress[0].to[0].ipBlock.cidr",
                "IPv4",
            ),
            (
                "ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}]",
                "spec.ingress[0].from[0].podSelector.matchExpressions[0]",
                "at least one",
            ),
        ],
    )
    def test_refusals(self, spec: str, path: str, sentence: str) -> None:
        parsed = netpol(f"{{podSelector: {{}}, {spec}}}")
        (section,) = parsed.sections
        assert (section.rules, len(section.refused)) == ((), 1)
        (problem,) = parsed.problems
        assert problem.path == path
        assert sentence in problem.sentence


class TestNamedPortsOfNetworkPolicy:
    INWARD = "{podSelector: {}, ingress: [{ports: [{port: web}]}]}"
    OUTWARD = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}"

    def test_inward_the_subject_says_which_number(self) -> None:
        parsed = netpol(self.INWARD)
        for number in (80, 8080):
            ports = (NamedPort("web", number, "TCP"), NamedPort("web", 7, "UDP"), NamedPort("db", 9, "TCP"))
            assert allows(parsed, DB, number, subject_ports=ports)
            assert not allows(parsed, DB, 9, subject_ports=ports)
            assert not allows(parsed, DB, 7, subject_ports=ports, protocol=UDP)
        assert not allows(parsed, DB, 80)
        assert not allows(parsed, DB, 80, peer_ports=(NamedPort("web", 80, "TCP"),))

    def test_outward_the_peers_say_and_may_disagree(self) -> None:
        parsed = netpol(self.OUTWARD)
        ports = (NamedPort("web", 80, "TCP"), NamedPort("web", 8080, "TCP"))
        assert allows(parsed, DB, 80, direction=OUT, peer_ports=ports)
        assert allows(parsed, DB, 8080, direction=OUT, peer_ports=ports)
        assert not allows(parsed, DB, 81, direction=OUT, peer_ports=ports)
        assert not allows(parsed, WORLD4, 80, direction=OUT)

    def test_the_protocol_is_tcp_unless_said(self) -> None:
        rules = (
            netpol("{podSelector: {}, ingress: [{ports: [{port: dns, protocol: UDP}]}]}").sections[0].rules
        )
        assert rules[0].ports == (PortName(UDP, "dns"),)
        assert netpol(self.INWARD).sections[0].rules[0].ports == (PortName(TCP, "web"),)


@pytest.mark.parametrize("read", [netpol, cnp])
def test_peers_are_of_this_cluster(read: Callable[[str], Parsed]) -> None:
    if read is netpol:
        parsed = read("{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}]}]}")
    else:
        parsed = read("{endpointSelector: {}, ingress: [{fromEndpoints: [{}, {matchLabels: {app: web}}]}]}")
    assert allows(parsed, DB)
    assert not allows(parsed, FAR)


class TestClusters:
    """Whose pods a selector means."""

    @pytest.mark.parametrize(
        ("requirement", "meant"),
        [
            ("matchLabels: {io.cilium.k8s.policy.cluster: far}", [FAR]),
            ("matchLabels: {'k8s:io.cilium.k8s.policy.cluster': far}", [FAR]),
            ("matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]", [WEB, DB, FAR]),
            ("matchLabels: {app: web}", [WEB]),
            ("matchLabels: {'reserved:host': ''}", [HOST]),
        ],
    )
    def test_a_selector_may_name_one(self, requirement: str, meant: list[Identity]) -> None:
        parsed = cnp(f"{{endpointSelector: {{}}, ingress: [{{fromEndpoints: [{{{requirement}}}]}}]}}")
        assert who(parsed, (WEB, DB, JOB, HOST, FAR)) == meant

    def test_the_name_is_the_agents(self) -> None:
        spec: dict[str, Any] = {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}
        parsed = parse(policy("CiliumNetworkPolicy", spec), cluster="far")
        assert who(parsed, (WEB, DB, FAR)) == [FAR]


class TestCilium:
    @pytest.mark.parametrize(
        ("peers", "expected"),
        [
            ("", []),
            ("fromEndpoints: []", []),
            ("fromEntities: []", []),
            ("fromEndpoints: [{}]", [WEB, DB]),
            ("fromEndpoints: [{matchLabels: {app: db}}]", [DB]),
            ("fromEndpoints: [{matchLabels: {'k8s:app': db}}]", [DB]),
            ("fromEndpoints: [{matchLabels: {'any:app': db}}]", [DB]),
            ("fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': blue}}]", [JOB]),
            ("fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: b}}]", [JOB]),
            (
                "fromEndpoints: [{matchExpressions: "
                "[{key: 'k8s:io.kubernetes.pod.namespace', operator: NotIn, values: [red]}]}]",
                [JOB],
            ),
            ("fromEndpoints: [{matchLabels: {'reserved:host': ''}}]", [HOST]),
            ("fromEntities: [all]", [WEB, DB, JOB, HOST, WORLD4]),
            ("fromEntities: [cluster]", [WEB, DB, JOB, HOST]),
            ("fromEntities: [world]", [WORLD4]),
            ("fromEntities: [host, world]", [HOST, WORLD4]),
            ("fromEntities: [none]", []),
            ("fromCIDR: [0.0.0.0/0]", [WORLD4]),
            ("toPorts: [{ports: [{port: '80'}]}]", [WEB, DB, JOB, HOST, WORLD4]),
            ("fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]", []),
            ("fromEndpoints: [], fromEntities: [all]", []),
        ],
    )
    def test_peers_of_a_namespaced_policy(self, peers: str, expected: list[Identity]) -> None:
        assert who(cnp(f"{{endpointSelector: {{}}, ingress: [{{{peers}}}]}}")) == expected

    def test_clusterwide_peers_are_pods_of_every_namespace(self) -> None:
        parsed = ccnp("{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]}")
        assert who(parsed) == [WEB, DB, JOB]
        assert len(who(parsed, subject=JOB)) == 5

    def test_clusterwide_about_initialising_pods_means_truly_everybody(self) -> None:
        parsed = ccnp(
            "{endpointSelector: {matchLabels: {'reserved:init': ''}}, ingress: [{fromEndpoints: [{}]}]}"
        )
        assert parsed.sections[0].rules[0].peer is None

    def test_entity_cluster_is_this_cluster(self) -> None:
        spec = {"endpointSelector": {}, "ingress": [{"fromEntities": ["cluster"]}]}
        parsed = parse(policy("CiliumNetworkPolicy", spec), cluster="other")
        assert not allows(parsed, DB)
        assert allows(parsed, NODE)
        assert allows(parsed, API)

    def test_remote_nodes_and_the_api_server(self) -> None:
        parsed = cnp("{endpointSelector: {}, egress: [{toEntities: [kube-apiserver]}]}")
        assert allows(parsed, API, direction=OUT)
        assert not allows(parsed, NODE, direction=OUT)
        assert allows(
            cnp("{endpointSelector: {}, egress: [{toEntities: [remote-node]}]}"), API, direction=OUT
        )

    def test_deny_beats_allow(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, ingress: [{fromEntities: [all]}],"
            " ingressDeny: [{fromEndpoints: [{matchLabels: {app: db}}], toPorts: [{ports: [{port: '80'}]}]}]}"
        )
        assert not allows(parsed, DB, 80)
        assert allows(parsed, DB, 81)
        assert allows(parsed, WEB, 80)

    def test_an_empty_deny_denies_nobody_but_isolates(self) -> None:
        parsed = cnp("{endpointSelector: {}, ingress: [{fromEntities: [host]}], egressDeny: [{}]}")
        assert who(parsed) == [HOST]
        assert who(parsed, direction=OUT) == []

    @pytest.mark.parametrize(
        ("rules", "isolates"),
        [
            ("ingress: []", ()),
            ("ingress: [{}]", (IN,)),
            ("ingressDeny: [{}]", (IN,)),
            ("egress: [{}], enableDefaultDeny: {egress: false}", ()),
            ("egress: [{}], enableDefaultDeny: {ingress: true}", (IN, OUT)),
        ],
    )
    def test_default_deny(self, rules: str, isolates: tuple[Direction, ...]) -> None:
        assert cnp(f"{{endpointSelector: {{}}, {rules}}}").sections[0].isolates == isolates

    def test_a_policy_that_does_not_isolate_still_denies(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, ingressDeny: [{fromEntities: [world]}],"
            " enableDefaultDeny: {ingress: false}}"
        )
        assert who(parsed) == [WEB, DB, JOB, HOST]

    def test_ports_and_protocols(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '80'},"
            " {port: '90', endPort: 95, protocol: UDP}]}, {ports: [{port: '0', protocol: SCTP}]}]}]}"
        )
        assert all(allows(parsed, DB, 80, protocol=protocol) for protocol in (TCP, UDP, SCTP))
        assert [allows(parsed, DB, port, protocol=UDP) for port in (89, 90, 95, 96)] == [0, 1, 1, 0]
        assert allows(parsed, DB, 1, protocol=SCTP)
        assert not allows(parsed, DB, 8, protocol=ICMP)

    def test_icmp_types_by_name_and_number(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, ingress: [{icmps: [{fields:"
            " [{type: EchoRequest}, {type: 128, family: IPv6}, {type: '3'}]}]}]}"
        )
        assert allows(parsed, DB, 8, protocol=ICMP)
        assert allows(parsed, DB, 3, protocol=ICMP)
        assert allows(parsed, DB, 128, protocol=ICMPV6)
        assert not allows(parsed, DB, 0, protocol=ICMP)
        assert not allows(parsed, DB, 8, protocol=ICMPV6)
        assert not allows(parsed, DB, 8, protocol=TCP)

    def test_rules_without_ports_are_about_every_protocol(self) -> None:
        parsed = cnp("{endpointSelector: {}, ingress: [{fromEntities: [host]}]}")
        assert allows(parsed, HOST, 8, protocol=ICMP)

    def test_specs_are_read_as_spec_is(self) -> None:
        row = policy("CiliumNetworkPolicy", {"endpointSelector": {}, "ingress": [{}]})
        body = row.body
        both = PolicyObject(
            kind=row.kind,
            namespace="red",
            name="p",
            body=type(body)(metadata=body.metadata, specs=(body.spec, body.spec)),
        )
        assert [section.ref.path for section in parse(both).sections] == ["specs[0]", "specs[1]"]

    def test_rules_name_their_place(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '80'}]}]},"
            " {fromEndpoints: [{}, {matchLabels: {a: b}}]}], egressDeny: [{toCIDRSet: [{cidr: 10.0.0.0/8}]}]}"
        )
        assert [rule.ref.path for rule in parsed.sections[0].rules] == [
            "spec.ingress[0]",
            "spec.ingress[1].fromEndpoints[0]",
            "spec.ingress[1].fromEndpoints[1]",
            "spec.egressDeny[0].toCIDRSet[0]",
        ]

    def test_prefixes_are_written_one_way(self) -> None:
        parsed = cnp("{endpointSelector: {}, egress: [{toCIDR: [10.9.9.9/8, 192.0.2.1, '2001:DB8::/32']}]}")
        assert [rule.peer for rule in parsed.sections[0].rules] == [
            Cidr("10.0.0.0/8"),
            Cidr("192.0.2.1/32"),
            Cidr("2001:db8::/32"),
        ]

    def test_a_namespaced_policy_selects_no_subject_elsewhere(self) -> None:
        own = "{endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': %s}}, ingress: [{}]}"
        assert cnp(own % "red").problems == ()
        (problem,) = cnp(own % "blue").problems
        assert problem.path == "spec.endpointSelector"

    def test_disabled_authentication_is_no_demand(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, ingress: [{fromEntities: [host], authentication: {mode: disabled}}]}"
        )
        assert who(parsed) == [HOST]

    def test_a_policy_without_rules_is_refused(self) -> None:
        body = policy("CiliumNetworkPolicy", {"endpointSelector": {}}).body
        empty = PolicyObject(
            kind="CiliumNetworkPolicy", namespace="red", name="p", body=type(body)(metadata=body.metadata)
        )
        assert [problem.path for problem in parse(empty).problems] == ["spec"]


class TestGroupsAndServices:
    @staticmethod
    def peers(part: str, read: Callable[[str], Parsed] = cnp) -> list[object]:
        parsed = read(f"{{endpointSelector: {{}}, egress: [{{{part}}}]}}")
        assert parsed.problems == ()
        return [rule.peer for rule in parsed.sections[0].rules]

    def test_a_group_by_name_less_some_prefixes(self) -> None:
        assert self.peers("toCIDRSet: [{cidrGroupRef: g, except: [10.1.2.3/24, 10.1.2.0/24]}]") == [
            CidrGroup(name="g", excepts=("10.1.2.0/24",))
        ]

    def test_groups_by_label(self) -> None:
        assert self.peers("toCIDRSet: [{cidrGroupSelector: {matchLabels: {a: b}}}]") == [
            CidrGroup(selector=Selector((equals("k8s", "a", "b"),)))
        ]

    def test_labels_of_prefixes_and_groups_as_endpoints(self) -> None:
        assert self.peers("toEndpoints: [{matchLabels: {'cidr:10.1.0.0/16': ''}}]") == [Cidr("10.1.0.0/16")]
        assert self.peers("toEndpoints: [{matchLabels: {'cidr:2001-db8--0/32': ''}}]") == [
            Cidr("2001:db8::/32")
        ]
        assert self.peers(
            "toEndpoints: [{matchExpressions:"
            " [{key: 'cidrgroup:io.cilium.policy.cidrgroupname/g', operator: Exists}]}]"
        ) == [CidrGroup(name="g")]
        assert self.peers("toEndpoints: [{matchLabels: {'cidrgroup:a': b}}]") == [
            CidrGroup(selector=Selector((equals("k8s", "a", "b"),)))
        ]

    @pytest.mark.parametrize("source", ["", "k8s:", "any:"])
    def test_objects_of_kubernetes_by_keys_with_their_source(self, source: str) -> None:
        wanted = equals("k8s", "a", "b")
        selector = f"{{matchLabels: {{'{source}a': b}}}}"
        nodes = self.peers(f"toNodes: [{selector}]", ccnp)
        assert [wanted in peer.requirements for peer in nodes if isinstance(peer, Selector)] == [True, True]
        group = f"toCIDRSet: [{{cidrGroupSelector: {selector}}}]"
        assert self.peers(group) == [CidrGroup(selector=Selector((wanted,)))]
        service = f"toServices: [{{k8sServiceSelector: {{selector: {selector}}}}}]"
        assert self.peers(service) == [ServicePeer(namespace="red", selector=Selector((wanted,)))]
        (section,) = ccnp(f"{{nodeSelector: {selector}, ingress: [{{}}]}}").sections
        assert wanted in section.subject.requirements

    def test_a_source_that_nobody_has_is_warned_of(self) -> None:
        parsed = cnp("{endpointSelector: {}, ingressDeny: [{fromEndpoints: [{matchLabels: {'k8:a': b}}]}]}")
        (warning,) = parsed.warnings
        assert warning.path == "spec.ingressDeny[0].fromEndpoints[0].matchLabels[k8:a]"
        assert "'k8'" in warning.sentence

    def test_a_service_by_name_is_of_the_own_namespace_unless_said(self) -> None:
        assert self.peers(
            "toServices: [{k8sService: {serviceName: s}}, {k8sService: {serviceName: s, namespace: blue}}]"
        ) == [ServicePeer(namespace="red", name="s"), ServicePeer(namespace="blue", name="s")]

    def test_services_by_label(self) -> None:
        selector = Selector((equals("k8s", "a", "b"),))
        part = "toServices: [{k8sServiceSelector: {selector: {matchLabels: {a: b}}}}]"
        assert self.peers(part) == [ServicePeer(namespace="red", selector=selector)]
        assert self.peers(part, ccnp) == [ServicePeer(selector=selector)]

    def test_services_are_denied_like_other_peers(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, egressDeny: [{toServices: [{k8sService: {serviceName: s}}],"
            " toPorts: [{ports: [{port: '80'}]}]}]}"
        )
        (rule,) = parsed.sections[0].rules
        assert (rule.action, rule.ref.path) == (Action.DENY, "spec.egressDeny[0].toServices[0]")


class TestNodes:
    NEAR, FURTHER = node(2 << 24, "zone=a"), node((2 << 24) + 1, "zone=b")
    HERE = node(1, "zone=a", kind="host")

    @pytest.mark.parametrize(
        ("selector", "meant"),
        [
            ("{}", [NEAR, FURTHER, HERE, HOST, NODE, API]),
            ("{matchLabels: {zone: a}}", [NEAR, HERE]),
            ("{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}", [FURTHER, HOST, NODE, API]),
        ],
    )
    def test_peers(self, selector: str, meant: list[Identity]) -> None:
        everybody = (self.NEAR, self.FURTHER, self.HERE, HOST, NODE, API, WEB, WORLD4)
        parsed = cnp(f"{{endpointSelector: {{}}, ingress: [{{fromNodes: [{selector}]}}]}}")
        assert who(parsed, everybody) == meant
        parsed = cnp(f"{{endpointSelector: {{}}, egress: [{{toNodes: [{selector}]}}]}}")
        assert who(parsed, everybody, direction=OUT) == meant

    def test_subjects(self) -> None:
        parsed = ccnp("{nodeSelector: {matchLabels: {zone: a}}, ingress: [{fromEntities: [cluster]}]}")
        assert not allows(parsed, WORLD4, subject=self.HERE)
        assert allows(parsed, WEB, subject=self.HERE)
        assert allows(parsed, WORLD4, subject=HOST)
        assert allows(parsed, WORLD4, subject=WEB)
        assert parsed.sections[0].nodes

    def test_a_policy_for_endpoints_is_for_no_node(self) -> None:
        assert allows(ccnp("{endpointSelector: {}, ingress: [{}]}"), WORLD4, subject=self.HERE)


class TestMorePorts:
    def test_names_are_of_every_protocol_unless_said(self) -> None:
        parsed = cnp("{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: Web}]}]}]}")
        ports = (NamedPort("web", 80, "TCP"), NamedPort("web", 81, "UDP"))
        assert allows(parsed, DB, 80, subject_ports=ports)
        assert allows(parsed, DB, 81, subject_ports=ports, protocol=UDP)
        assert not allows(parsed, DB, 81, subject_ports=ports)

    def test_protocols_without_ports(self) -> None:
        parsed = ccnp(
            "{nodeSelector: {}, ingress: [{toPorts: [{ports: [{protocol: VRRP},"
            " {protocol: IGMP, port: '0'}]}]}]}"
        )
        assert [allows(parsed, NODE, 0, subject=HOST, protocol=number) for number in (112, 2, 6)] == [1, 1, 0]

    def test_no_port_is_every_port(self) -> None:
        parsed = cnp("{endpointSelector: {}, ingress: [{toPorts: [{ports: [{protocol: UDP}]}]}]}")
        assert allows(parsed, DB, 9, protocol=UDP)
        assert not allows(parsed, DB, 9)


class TestLogAndAudit:
    def test_the_text_is_with_every_rule_and_not_with_the_default(self) -> None:
        parsed = cnp(
            "{endpointSelector: {}, log: {value: by order}, ingress: [{fromEntities: [host, world]}]}"
        )
        (section,) = parsed.sections
        assert {rule.ref.log for rule in section.rules} == {"by order"}
        assert section.ref.log == ""

    @pytest.mark.parametrize(
        ("field", "audit"), [("audit: true,", True), ("audit: false,", False), ("", False)]
    )
    def test_a_spec_may_be_in_audit(self, field: str, audit: bool) -> None:
        assert cnp(f"{{{field} endpointSelector: {{}}, ingress: [{{}}]}}").sections[0].audit is audit

    @pytest.mark.parametrize(
        ("kind", "spec"),
        [
            ("NetworkPolicy", {"podSelector": {}}),
            ("CiliumNetworkPolicy", {"endpointSelector": {}, "ingress": [{}]}),
            ("CiliumClusterwideNetworkPolicy", {"endpointSelector": {}, "ingress": [{}], "audit": False}),
        ],
    )
    def test_any_policy_may_be_by_annotation(self, kind: str, spec: dict[str, Any]) -> None:
        def audit(text: str) -> Parsed:
            return parse(policy(kind, spec, **{"policy.cilia.io_audit": text}))

        assert audit("true").sections[0].audit
        assert not audit("false").sections[0].audit
        doubtful = audit("yes")
        assert not doubtful.sections[0].audit
        assert [warning.path for warning in doubtful.warnings] == [
            "metadata.annotations[policy.cilia.io/audit]"
        ]


def test_what_could_not_be_decoded_is_refused_with_its_problem() -> None:
    problem = PolicyProblem("spec.ingress[0]", "unknown field")
    row = PolicyObject(kind="CiliumNetworkPolicy", namespace="red", name="p", problem=problem)
    whole = PolicyProblem(problem.path, f"{problem.sentence} Until then the policy has no effect.")
    assert parse(row) == Parsed((), (whole,))


def test_a_namespaced_policy_without_namespace_is_not_read_as_clusterwide() -> None:
    for kind, spec in (
        ("NetworkPolicy", {"podSelector": {}}),
        ("CiliumNetworkPolicy", {"endpointSelector": {}, "ingress": [{}]}),
    ):
        (problem,) = parse(policy(kind, spec, namespace="")).problems
        assert problem.path == "metadata.namespace"
    row = policy("CiliumClusterwideNetworkPolicy", {"endpointSelector": {}, "ingress": [{}]})
    within = msgspec.structs.replace(row, namespace="red")
    assert [problem.path for problem in parse(within).problems] == ["metadata.namespace"]


def test_an_unknown_kind_is_refused() -> None:
    assert parse(PolicyObject(kind="Wish", namespace="red", name="p")).problems


def test_the_book_reads_an_object_once() -> None:
    book = RuleBook()
    row = policy("CiliumNetworkPolicy", {"endpointSelector": {}, "ingress": [{}]})
    assert book.parsed(row) is book.parsed(row)
    book.forget(row.key)
    book.forget(row.key)
    assert book.parsed(row) == parse(row)
