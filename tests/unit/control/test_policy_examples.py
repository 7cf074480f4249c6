"""The examples of the documentation mean something, and there is one for each part of the language."""

from __future__ import annotations

import copy
import random
from typing import Any

import msgspec
import pytest

from cilia.cluster import store
from cilia.control.policy.dialects.cilium import UNSUPPORTED
from cilia.control.policy.dialects.layer7 import PROXIED
from cilia.control.policy.dialects.parse import parse
from cilia.model.policy import PolicyObject
from cilia.model.resources import cilium_policy, cluster_network_policy, network_policy
from cilia.model.resources.base import camel_name
from cilia.sources.policies import policies as translated
from tests.support.policy_examples import LANGUAGE, examples
from tests.support.policy_reading import decoded

WITHOUT_EXAMPLE = {camel_name(name) for name in (*UNSUPPORTED, *PROXIED, "authentication", "labels")}

RESOURCES = {resource.kind: resource for resource in store.RESOURCES}


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
    text = LANGUAGE.read_text()
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


ABSURD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        70000,
        1.5,
        "",
        " ",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/33",
        "::ffff:1.2.3.4",
        "http",
        "-",
        "a" * 300,
    ),
    *([], {}, [{}], [None], {"a": "b"}, [["x"]], "%eth0", "cidr:10.0.0.0/8", "reserved:host", "\x00", "²"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_any_absurdity_is_read_or_refused_in_a_sentence(seed: int) -> None:
    chance, good = random.Random(seed), policies()
    for _ in range(250):
        document = copy.deepcopy(chance.choice(good))
        for _ in range(chance.randint(1, 3)):
            spec = document.get("spec") or document.get("specs")
            options = places(spec)
            if not options:
                break
            *way, last = chance.choice(options)
            target = spec
            for step in way:
                target = target[step]
            target[last] = copy.deepcopy(chance.choice(ABSURD))
        resource = RESOURCES[document["kind"]]
        row = translated(resource).row(msgspec.Raw(msgspec.json.encode(document)))
        assert row is not None
        parsed = parse(row, host_firewall=True)
        for problem in (*parsed.problems, *parsed.warnings):
            assert problem.sentence.endswith("."), problem
            assert problem.path, problem
