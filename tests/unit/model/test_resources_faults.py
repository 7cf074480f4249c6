"""What is wrong with an object is told with its path, and with what to write instead."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.cluster.store import Invalid, decode
from cilia.model.resources.cilium_policy import CiliumNetworkPolicy
from cilia.model.resources.cluster_network_policy import ClusterNetworkPolicy
from cilia.model.resources.faults import explain
from cilia.model.resources.network_policy import NetworkPolicy

Models = type[CiliumNetworkPolicy] | type[NetworkPolicy] | type[ClusterNetworkPolicy]


def told(model: Models, fields: Any) -> tuple[str, str] | None:
    raw = json.dumps(fields).encode()
    try:
        decode(raw, model)
    except Invalid as error:
        return explain(str(error), model, raw)
    return None


def ingress(rule: Any) -> dict[str, Any]:
    return {"endpointSelector": {}, "ingress": [{}, rule]}


def port(**fields: Any) -> dict[str, Any]:
    return ingress({"toPorts": [{"ports": [fields]}]})


PORT = "ingress[1].toPorts[0].ports[0]"


@pytest.mark.parametrize(
    ("spec", "path", "sentence"),
    [
        (
            ingress({"fromMoon": 1}),
            "ingress[1].fromMoon",
            "There is no field fromMoon here: correct its name, or remove it.",
        ),
        (
            ingress({"fromNode": 1}),
            "ingress[1].fromNode",
            "There is no field fromNode here: write fromNodes, or remove it.",
        ),
        (
            ingress({"authentication": {}}),
            "ingress[1].authentication.mode",
            "This field is required: give it a value.",
        ),
        (
            {"endpointSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
            "endpointSelector.matchExpressions[0].operator",
            "'Is' is not possible here: write DoesNotExist, Exists, In or NotIn.",
        ),
        (ingress({"fromCIDR": {}}), "ingress[1].fromCIDR", "This is fields: write a list."),
        (port(port=80), f"{PORT}.port", "Text is expected here: put it in quotes."),
        (
            port(port="99999"),
            f"{PORT}.port",
            "This text does not fit here: write a port number from 0 to 65535, or a port's name.",
        ),
        (port(port="1", endPort=70000), f"{PORT}.endPort", "The number is too large: write at most 65535."),
        (port(port="1", endPort=-1), f"{PORT}.endPort", "The number is too small: write at least 0."),
        (
            ingress({"toPorts": [{"ports": [{"port": "1"}] * 41}]}),
            "ingress[1].toPorts[0].ports",
            "The list is too long: write at most 40 entries.",
        ),
        (
            {"endpointSelector": {"matchLabels": {"good": "b", "bad": "-"}}},
            "endpointSelector.matchLabels[bad]",
            "This text does not fit here: write a label's value: letters, digits, dashes, dots and "
            "underscores, with a letter or digit at both ends.",
        ),
        (
            {"endpointSelector": {"matchLabels": {"bad": 1}}},
            "endpointSelector.matchLabels[bad]",
            "Text is expected here: put it in quotes.",
        ),
        (
            ingress({"fromCIDRSet": [{}]}),
            "ingress[1].fromCIDRSet[0]",
            "Exactly one of cidr, cidrGroupRef, cidrGroupSelector stands here, but none is given: "
            "keep or add one.",
        ),
        (
            {"endpointSelector": {}, "log": {"value": "x" * 33}},
            "log.value",
            "The text is too long: write at most 32 characters.",
        ),
    ],
)
def test_of_cilium_policies(spec: Any, path: str, sentence: str) -> None:
    assert told(CiliumNetworkPolicy, {"metadata": {"name": "p"}, "spec": spec}) == (f"spec.{path}", sentence)


def test_in_specs_the_number_of_the_spec_is_told() -> None:
    fields = {"metadata": {"name": "p"}, "specs": [{"endpointSelector": {}}, {"nodeSelector": 1}]}
    assert told(CiliumNetworkPolicy, fields) == (
        "specs[1].nodeSelector",
        "This is a whole number: write fields.",
    )


@pytest.mark.parametrize(
    ("spec", "path", "sentence"),
    [
        ({"tier": "High"}, "tier", "'High' is not possible here: write Admin or Baseline."),
        ({"tier": "Admin"}, "priority", "This field is required: give it a value."),
        (
            {"tier": "Admin", "priority": 1, "subject": {}, "ingress": [{"action": "Deny", "from": []}]},
            "ingress[0].from",
            "The list is too short: write at least 1 entries.",
        ),
    ],
)
def test_of_administrators_policies(spec: Any, path: str, sentence: str) -> None:
    assert told(ClusterNetworkPolicy, {"metadata": {"name": "p"}, "spec": spec}) == (f"spec.{path}", sentence)


def test_of_network_policies() -> None:
    spec = {"podSelector": {}, "ingress": [{"ports": [{"port": 1.5}]}]}
    assert told(NetworkPolicy, {"metadata": {"name": "p"}, "spec": spec}) == (
        "spec.ingress[0].ports[0].port",
        "This is a number with a fraction: write a whole number or text.",
    )


def test_what_is_no_json_has_no_path() -> None:
    assert explain("not a valid X: JSON is malformed: invalid character (byte 0)", NetworkPolicy) == (
        "",
        "JSON is malformed: invalid character (byte 0): correct this part.",
    )


def test_what_is_nested_too_deeply_is_invalid() -> None:
    deep = b'{"metadata": {"x": %s%s}}' % (b"[" * 50_000, b"]" * 50_000)
    with pytest.raises(Invalid, match="nested too deeply"):
        decode(deep, CiliumNetworkPolicy)


KEYS = st.sampled_from(
    [
        *("spec", "specs", "metadata", "name", "endpointSelector", "matchLabels", "matchExpressions", "key"),
        *("operator", "values", "ingress", "egress", "fromEndpoints", "toPorts", "ports", "port", "rules"),
        *("http", "dns", "icmps", "fields", "type", "toCIDRSet", "except", "log", "a"),
    ]
)
TREES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 99999), st.text(max_size=4), st.floats(allow_nan=False)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
)


@settings(deadline=None)
@given(tree=TREES, around=st.sampled_from(["spec", "ingress", "toPorts"]))
def test_anything_else_is_told_in_a_sentence(tree: Any, around: str) -> None:
    spec = {
        "spec": tree,
        "ingress": {"endpointSelector": {}, "ingress": [tree]},
        "toPorts": ingress({"toPorts": [tree]}),
    }[around]
    for model in (CiliumNetworkPolicy, NetworkPolicy, ClusterNetworkPolicy):
        fault = told(model, {"metadata": {"name": "p"}, "spec": spec})
        if fault is not None:
            assert fault[1].endswith(".")
            assert "`" not in fault[1]
            assert msgspec.json.encode(fault)
