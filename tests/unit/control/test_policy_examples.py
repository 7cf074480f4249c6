"""The examples of the documentation mean something, and there is one for each part of the language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cilia.control.policy.layer7 import PROXIED
from cilia.control.policy.parse import parse
from cilia.control.policy.parse_cilium import UNSUPPORTED
from cilia.model.policy import PolicyObject
from cilia.model.resources import cilium_policy, cluster_network_policy, network_policy
from cilia.model.resources.base import camel_name
from tests.support.policy_examples import PAGE, examples
from tests.support.policy_reading import decoded

WITHOUT_EXAMPLE = {camel_name(name) for name in (*UNSUPPORTED, *PROXIED, "authentication", "labels")}


def policies() -> list[Any]:
    return [document for document in examples() if document["kind"] != "CiliumCIDRGroup"]


def identify(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("document", policies(), ids=identify)
def test_an_example_is_in_force_as_it_stands(document: dict[str, Any]) -> None:
    row: PolicyObject = decoded(document)
    parsed = parse(row, host_firewall=True)
    assert parsed.problems == ()
    assert parsed.warnings == ()
    assert parsed.sections


def test_there_is_an_example_of_every_field() -> None:
    text = Path(PAGE).read_text()
    models = [
        *(getattr(cilium_policy, name) for name in ("Rule", "IngressRule", "EgressRule", "PortProtocol")),
        *(
            getattr(cilium_policy, name)
            for name in ("CIDRRule", "Service", "K8sService", "K8sServiceSelector")
        ),
        *(getattr(cluster_network_policy, name) for name in ("EgressPeer", "IngressPeer", "EgressRule")),
        *(getattr(network_policy, name) for name in ("NetworkPolicyPeer", "NetworkPolicyPort", "IPBlock")),
    ]
    fields = {field for model in models for field in model.__struct_encode_fields__}
    assert {field for field in fields if f"{field}:" not in text} <= WITHOUT_EXAMPLE | {"domainNames"}
