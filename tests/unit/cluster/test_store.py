"""Paths, kinds and bodies are those of the Kubernetes API."""

import json

import msgspec
import pytest

from cilia.cluster import store
from cilia.cluster.store import Invalid, Resource, decode, encode
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.model.resources.cilium_identity import CiliumIdentity


@pytest.mark.parametrize(
    ("resource", "arguments", "path"),
    [
        (store.PODS, {}, "/api/v1/pods"),
        (store.PODS, {"namespace": "n"}, "/api/v1/namespaces/n/pods"),
        (
            store.PODS,
            {"namespace": "n", "name": "p", "subresource": "status"},
            "/api/v1/namespaces/n/pods/p/status",
        ),
        (store.NODES, {"name": "x"}, "/api/v1/nodes/x"),
        (
            store.LEASES,
            {"namespace": "n", "name": "l"},
            "/apis/coordination.k8s.io/v1/namespaces/n/leases/l",
        ),
        (store.CILIUM_NODES, {"namespace": "ignored"}, "/apis/cilium.io/v2/ciliumnodes"),
    ],
)
def test_paths(resource: Resource, arguments: dict[str, str], path: str) -> None:
    assert resource.path(**arguments) == path


def test_a_body_says_what_it_is() -> None:
    identity = CiliumIdentity(metadata=ObjectMeta(name="300"), security_labels={"k8s:app": "web"})
    assert json.loads(encode(store.CILIUM_IDENTITIES, identity)) == {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumIdentity",
        "metadata": {"name": "300"},
        "security-labels": {"k8s:app": "web"},
    }
    assert json.loads(encode(store.PODS, {"metadata": {}})) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {},
    }


def test_what_can_not_be_decoded_is_invalid_with_its_path() -> None:
    assert decode(b'{"metadata": {"name": "a"}}', AnyObject).metadata.name == "a"
    assert decode(msgspec.Raw(b'{"metadata": {"name": "b"}}'), AnyObject).metadata.name == "b"
    for wrong in (b'{"metadata": {"name": 1}}', b"{", b'{"metadata": {"name": "\xff"}}'):
        with pytest.raises(Invalid, match="not a valid AnyObject"):
            decode(wrong, AnyObject)


def test_every_kind_is_one_of_its_own() -> None:
    assert len({resource.path() for resource in store.RESOURCES}) == len(store.RESOURCES)
