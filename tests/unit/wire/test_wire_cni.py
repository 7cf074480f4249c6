"""The CNI codec: what calls mean, and that no bytes get a traceback out of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.wire import cni

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME=web-0;K8S_POD_UID=u;"
    "K8S_POD_INFRA_CONTAINER_ID=c1",
}
CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "cilia", "type": "cilia-cni"}
RESULT = cni.Result(
    interfaces=(
        cni.Interface(name="lxc1", mac="02:00:00:00:00:01", mtu=1450),
        cni.Interface(name="eth0", mac="02:00:00:00:00:02", sandbox="/run/netns/a", mtu=1450),
    ),
    ips=(
        cni.Address(address="10.0.0.7/32", gateway="10.0.0.1", interface=1),
        cni.Address(address="fd00::7/128", gateway="fd00::1", interface=1),
    ),
    routes=(cni.Route(dst="0.0.0.0/0", gw="10.0.0.1", mtu=1450), cni.Route(dst="::/0", gw="fd00::1")),
    dns=cni.Dns(nameservers=("10.96.0.10",), search=("svc.cluster.local",)),
)


def parse(config: dict[str, Any] | None = None, **environment: str) -> cni.Request:
    document = json.dumps(CONFIG | (config or {})).encode()
    return cni.parse_request(ENVIRONMENT | environment, document)


def refusal(config: dict[str, Any] | None = None, **environment: str) -> cni.CniError:
    with pytest.raises(cni.CniError) as caught:
        parse(config, **environment)
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")
    return caught.value


def test_add_carries_pod_and_network() -> None:
    request = parse({"log-level": "debug", "mtu": 1400, "runtimeConfig": {"mac": "02::"}, "unknown": [1]})
    assert isinstance(request, cni.Add)
    assert request.pod == cni.Pod(namespace="demo", name="web-0", uid="u", infra_container_id="c1")
    assert request.network.runtime_config == {"mac": "02::"}
    assert (request.network.log_level, request.network.mtu) == ("debug", 1400)
    assert request.arguments["IgnoreUnknown"] == "1"


def test_a_runtime_without_kubernetes_is_served() -> None:
    request = parse(CNI_ARGS="")
    assert isinstance(request, cni.Add)
    assert request.pod == cni.Pod()


def test_delete_needs_neither_namespace_nor_a_sound_previous_result() -> None:
    for previous in (None, {"ips": 5}, {"ips": [{"address": "rubbish"}]}):
        request = parse({"prevResult": previous}, CNI_COMMAND="DEL", CNI_NETNS="")
        assert isinstance(request, cni.Delete)
        assert (request.netns, request.previous) == ("", None)


@pytest.mark.parametrize("version", cni.SUPPORTED_VERSIONS)
def test_what_add_returned_comes_back_in_check_and_delete(version: str) -> None:
    document = cni.encode_result(RESULT, version)
    kept = cni.parse_result(document)
    assert [a.address for a in kept.ips] == ["10.0.0.7/32", "fd00::7/128"]
    raw = json.loads(document)
    assert ("mtu" in raw["interfaces"][1]) == (version == "1.1.0")
    assert ("version" in raw["ips"][0]) == version.startswith("0.")
    config = {"cniVersion": version, "prevResult": raw}
    deleted = parse(config, CNI_COMMAND="DEL")
    assert isinstance(deleted, cni.Delete)
    assert deleted.previous == kept
    if version != "0.3.1":
        checked = parse(config, CNI_COMMAND="CHECK")
        assert isinstance(checked, cni.Check)
        assert checked.previous == kept
    if version == "1.1.0":
        assert kept == RESULT


def test_garbage_collection_needs_its_list() -> None:
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]
    request = parse({"cni.dev/valid-attachments": valid}, CNI_COMMAND="GC", CNI_CONTAINERID="")
    assert isinstance(request, cni.CollectGarbage)
    assert request.valid == {("a", "eth0"), ("b", "net1")}
    assert refusal(CNI_COMMAND="GC").code == cni.Code.INVALID_CONFIG
    assert parse({"cni.dev/valid-attachments": []}, CNI_COMMAND="GC") == cni.CollectGarbage(
        network=request.network, valid=frozenset()
    )


def test_version_is_answered_without_a_configuration() -> None:
    assert cni.parse_request({"CNI_COMMAND": "VERSION"}, b"") == cni.Version()
    answer = json.loads(cni.encode_versions("0.4.0"))
    assert answer == {"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}
    assert json.loads(cni.encode_versions("9.9"))["cniVersion"] == "1.1.0"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"CNI_COMMAND": ""}, "CNI_COMMAND"),
        ({"CNI_COMMAND": "add"}, "CNI_COMMAND"),
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "-x"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a/../b"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a" * 129}, "CNI_CONTAINERID"),
        ({"CNI_NETNS": ""}, "CNI_NETNS"),
        ({"CNI_NETNS": "relative"}, "CNI_NETNS"),
        ({"CNI_IFNAME": ""}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "sixteen-letters-"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "ééééééééé"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a b"}, "CNI_IFNAME"),
        ({"CNI_ARGS": "K8S_POD_NAME"}, "CNI_ARGS"),
        ({"CNI_ARGS": "K8S_POD_NAME=web"}, "K8S_POD_NAMESPACE"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=web"}, "K8S_POD_NAMESPACE"),
    ],
)
def test_a_wrong_environment_is_code_4_and_names_the_variable(
    environment: dict[str, str], named: str
) -> None:
    error = refusal(None, **environment)
    assert error.code == cni.Code.INVALID_ENVIRONMENT
    assert named in error.message


@pytest.mark.parametrize(
    ("config", "command", "code"),
    [
        ({"cniVersion": "0.2.0"}, "ADD", 1),
        ({"cniVersion": ""}, "ADD", 1),
        ({"cniVersion": "1.0.0"}, "STATUS", 1),
        ({"cniVersion": "1.0.0"}, "GC", 1),
        ({"cniVersion": "0.3.1"}, "CHECK", 1),
        ({"cniVersion": 1}, "ADD", 7),
        ({"name": ""}, "ADD", 7),
        ({"name": "a b"}, "ADD", 7),
        ({"mtu": 100}, "ADD", 7),
        ({"mtu": "1500"}, "ADD", 7),
        ({"prevResult": {"ips": []}}, "ADD", 7),
        ({}, "CHECK", 7),
        ({"prevResult": {"ips": [{"address": "10.0.0.300/32"}]}}, "CHECK", 7),
        ({"prevResult": {"ips": [{"address": "10.0.0.3/32", "interface": 3}]}}, "CHECK", 7),
        ({"prevResult": {"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}}, "CHECK", 7),
        ({"cni.dev/valid-attachments": [{}]}, "GC", 7),
    ],
)
def test_a_wrong_configuration_has_its_code(config: dict[str, Any], command: str, code: int) -> None:
    assert refusal(config, CNI_COMMAND=command).code == code


@pytest.mark.parametrize("document", [b"", b"{", b"\xff", b'{"x":' + b"[" * 9999, b'{"name":"\xff"}', b"{}x"])
def test_what_is_not_json_is_code_6(document: bytes) -> None:
    with pytest.raises(cni.CniError) as caught:
        cni.parse_request(ENVIRONMENT, document)
    assert caught.value.code == cni.Code.DECODING_FAILURE


def test_errors_are_written_with_details_only_when_there_are_some() -> None:
    error = cni.CniError(cni.Code.NO_ADDRESS, "The pool is empty.", "10.0.0.0/24")
    assert json.loads(cni.encode_error(error, "1.0.0")) == {
        "cniVersion": "1.0.0",
        "code": 101,
        "msg": "The pool is empty.",
        "details": "10.0.0.0/24",
    }
    assert cni.parse_error_code(cni.encode_error(error)) == 101
    assert cni.parse_error_code(b"rubbish") == 0


def test_a_frame_survives_its_journey() -> None:
    frame = cni.encode_frame({"CNI_COMMAND": "ADD", "CNI_ARGS": "A=B;C=D=E"}, b"{}")
    environment, stdin = cni.parse_frame(frame)
    assert cni.parse_environment(environment) == {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=B;C=D=E"}
    assert stdin == b"{}"
    for wrong in (b"", frame[:-1], frame + b"x", b"x" + frame, cni.MAGIC + b"\xff" * 8):
        with pytest.raises(cni.FrameError):
            cni.parse_frame(wrong)


TEXT = st.text(max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "cniVersion",
        "name",
        "type",
        "mtu",
        "prevResult",
        "runtimeConfig",
        "cni.dev/valid-attachments",
        "log-level",
        "ips",
        "interfaces",
        "routes",
        "dns",
    ]
)
DOCUMENTS = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=6).map(
        lambda d: json.dumps(CONFIG | d).encode("utf-8", "surrogatepass")
    ),
)
ENVIRONMENTS = st.dictionaries(
    st.sampled_from(["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]),
    st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "eth0", "/n", "A=B;C"]) | TEXT,
).map(lambda changed: ENVIRONMENT | changed)


@settings(max_examples=150, deadline=None)
@given(ENVIRONMENTS, DOCUMENTS)
def test_any_call_is_understood_or_refused_in_a_sentence(
    environment: dict[str, str], document: bytes
) -> None:
    try:
        cni.parse_request(environment, document)
    except cni.CniError as error:
        assert error.code in (1, 4, 6, 7)
        assert "\n" not in error.message
        json.loads(cni.encode_error(error, cni.version_of(document)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_block_is_an_environment_or_refused(block: bytes) -> None:
    try:
        cni.parse_environment(block)
    except cni.CniError as error:
        assert error.code == cni.Code.INVALID_ENVIRONMENT
