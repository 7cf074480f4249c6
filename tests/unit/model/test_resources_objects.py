"""Objects carry the names users know, in both directions, and leave out what is not set."""

import json

import msgspec
import pytest

from cilia.cluster.store import decode
from cilia.model.resources.base import ObjectMeta, camel_name, kebab_name
from cilia.model.resources.cilium_endpoint import CiliumEndpoint
from cilia.model.resources.cilium_node import CiliumNode, NodeAddress, NodeIPAM, NodeSpec
from cilia.model.resources.core import Lease, Pod

ENDPOINT = {
    "metadata": {
        "name": "web",
        "namespace": "shop",
        "resourceVersion": "7",
        "ownerReferences": [{"uid": "u"}],
    },
    "status": {
        "id": 12,
        "external-identifiers": {"container-id": "c", "k8s-pod-name": "web"},
        "health": {"bpf": "OK", "overallHealth": "OK"},
        "identity": {"id": 300, "labels": ["k8s:app=web"]},
        "networking": {"addressing": [{"ipv4": "10.0.0.2", "ipv6": "fd00::2"}], "node": "10.1.0.1"},
        "policy": {"ingress": {"enforcing": False, "state": "disabled"}},
        "named-ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "state": "ready",
    },
}
NODE = {
    "metadata": {"name": "n1"},
    "spec": {
        "addresses": [{"type": "CiliumInternalIP", "ip": "10.0.0.1"}],
        "alibaba-cloud": {"vpc-id": "v"},
        "ipam": {"podCIDRs": ["10.0.0.0/24"], "pre-allocate": 8, "ipv6-pool": {"fd00::2": {"owner": "o"}}},
        "instance-id": "i",
    },
    "status": {
        "azure": {"interfaces": [{"GatewayIP": "10.0.0.1", "security-group": "s"}]},
        "ipam": {"operator-status": {"error": "full"}, "release-ips": {"10.0.0.3": "released"}},
    },
}


@pytest.mark.parametrize(("fields", "model"), [(ENDPOINT, CiliumEndpoint), (NODE, CiliumNode)])
def test_an_object_comes_back_as_it_went(fields: object, model: type[msgspec.Struct]) -> None:
    decoded = decode(json.dumps(fields).encode(), model)
    assert json.loads(msgspec.json.encode(decoded)) == fields


def test_a_required_part_is_written_even_when_it_is_false_and_the_rest_is_not() -> None:
    node = CiliumNode(
        metadata=ObjectMeta(name="n"),
        spec=NodeSpec(addresses=(NodeAddress(type="InternalIP", ip="::1"),), ipam=NodeIPAM(pod_cidrs=())),
    )
    assert json.loads(msgspec.json.encode(node)) == {
        "metadata": {"name": "n"},
        "spec": {"addresses": [{"type": "InternalIP", "ip": "::1"}], "ipam": {"podCIDRs": []}},
    }


def test_what_others_put_into_an_object_is_no_concern() -> None:
    pod = decode(
        b'{"metadata": {"name": "p", "managedFields": []},'
        b' "spec": {"volumes": [1], "containers": [{"image": "i"}]},'
        b' "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "qosClass": "x"}}',
        Pod,
    )
    assert [address.ip for address in pod.status.pod_ips or ()] == ["10.0.0.1", "fd00::1"]
    lease = decode(b'{"metadata": {"name": "l"}, "spec": {"holderIdentity": null}}', Lease)
    assert lease.spec.holder_identity is None


@pytest.mark.parametrize(
    ("field", "camel", "kebab"),
    [
        ("to_cidr_set", "toCIDRSet", "to-cidr-set"),
        ("to_fqdns", "toFQDNs", "to-fqdns"),
        ("except_", "except", "except"),
        ("pod_ip", "podIP", "pod-ip"),
        ("client_id", "clientID", "client-id"),
        ("cidr_group_ref", "cidrGroupRef", "cidr-group-ref"),
        ("l7proto", "l7proto", "l7proto"),
    ],
)
def test_names(field: str, camel: str, kebab: str) -> None:
    assert (camel_name(field), kebab_name(field)) == (camel, kebab)
