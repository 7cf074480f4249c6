"""Requests, tokens, roles, credentials and protobuf bodies."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cilia.cluster.embedded import auth, protobuf
from cilia.cluster.embedded.auth import ROLES, Authenticator, User
from cilia.cluster.embedded.credentials import issue_token, make_authority, write_kubeconfig
from cilia.cluster.embedded.errors import ApiError
from cilia.cluster.embedded.requests import Target, decode_json, parse_path, representation


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api/v1/nodes", Target("", "v1", "nodes")),
        ("/api/v1/namespaces", Target("", "v1", "namespaces")),
        ("/api/v1/namespaces/a", Target("", "v1", "namespaces", "", "a")),
        ("/api/v1/namespaces/a/status", Target("", "v1", "namespaces", "", "a", "status")),
        ("/api/v1/namespaces/a/pods", Target("", "v1", "pods", "a")),
        ("/api/v1/namespaces/a/pods/b/status", Target("", "v1", "pods", "a", "b", "status")),
        ("/apis/cilium.io/v2/ciliumnodes/n", Target("cilium.io", "v2", "ciliumnodes", "", "n")),
        ("/apis/x.y/v1/namespaces/a/bs/c", Target("x.y", "v1", "bs", "a", "c")),
        ("/apis/x.y/v1", None),
        ("/api", None),
        ("/version", None),
        ("/api/v1/namespaces/a/pods/b/c/d", None),
        ("/api/v1//pods", None),
    ],
)
def test_paths(path: str, target: Target | None) -> None:
    assert parse_path(path) == target


def test_accept_headers() -> None:
    assert representation("") == representation("*/*") == representation("application/json") == ""
    assert representation("application/json;as=Table;v=v1;g=meta.k8s.io,application/json") == "Table"
    assert representation("application/vnd.kubernetes.protobuf, application/json") == ""
    with pytest.raises(ApiError, match="application/json"):
        representation("text/html")


def test_json_has_a_depth() -> None:
    assert decode_json(b"[" * 90 + b"]" * 90)
    with pytest.raises(ApiError, match="deeper"):
        decode_json(b"[" * 150 + b"]" * 150)


def test_tokens(tmp_path: Path) -> None:
    token = issue_token(tmp_path, "agent-n1", "agent", "n1")
    known = Authenticator(tmp_path / "tokens.json")
    assert known.user(f"Bearer {token}") == User("agent-n1", "agent", "n1")
    assert known.user(f"bearer {token}").node == "n1"
    for header in ("", "Bearer ", f"Basic {token}", f"Bearer {token}x"):
        with pytest.raises(ApiError) as caught:
            known.user(header)
        assert caught.value.code == 401 and token not in caught.value.message
    later = issue_token(tmp_path, "admin", "admin")
    assert known.user(f"Bearer {later}").role == "admin"
    with pytest.raises(ValueError, match="node"):
        issue_token(tmp_path, "agent", "agent")


def test_a_token_file_gone_bad_lets_nobody_in(tmp_path: Path) -> None:
    token = issue_token(tmp_path, "admin", "admin")
    known = Authenticator(tmp_path / "tokens.json")
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(ApiError) as caught:
        known.user(f"Bearer {token}")
    assert caught.value.code == 401


def test_roles_name_what_they_may_do() -> None:
    def may(role: Any, verb: str, group: str, plural: str, below: str = "") -> bool:
        return auth.allowed(User("u", role, "n"), verb, Target(group, "v1", plural, subresource=below))

    assert all(may(role, "create", "authentication.k8s.io", "selfsubjectreviews") for role in ROLES)
    assert [role for role in ROLES if may(role, "get", "", "secrets")] == ["admin"]
    assert {role for role in ROLES if may(role, "update", "cilium.io", "ciliumnetworkpolicies")} == {"admin"}
    assert {role for role in ROLES if may(role, "create", "networking.k8s.io", "networkpolicies")} == {
        "admin"
    }
    assert may("agent", "patch", "cilium.io", "ciliumnetworkpolicies", "status")
    assert may("lab", "patch", "", "pods", "status") and not may("agent", "patch", "", "pods", "status")
    assert may("agent", "watch", "policy.networking.k8s.io", "clusternetworkpolicies")
    assert may("agent", "patch", "policy.networking.k8s.io", "clusternetworkpolicies", "status")
    assert not may("agent", "patch", "policy.networking.k8s.io", "clusternetworkpolicies")
    assert may("agent", "list", "cilium.io", "ciliumcidrgroups")
    assert not may("agent", "create", "cilium.io", "ciliumcidrgroups")
    assert may("agent", "list", "", "services") and may("agent", "list", "discovery.k8s.io", "endpointslices")
    assert may("agent", "create", "cilium.io", "ciliumidentities")
    for verb in ("update", "patch", "delete"):
        assert not may("agent", verb, "cilium.io", "ciliumidentities")
    for role in ROLES:
        assert auth.describe(User("u", role))


def test_an_authority_serves_the_names_it_is_asked_for(tmp_path: Path) -> None:
    from cryptography import x509

    def names() -> set[str]:
        certificate = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return {str(name.value) for name in found.value}

    first = make_authority(tmp_path, ["10.9.8.7"])
    ca = first.ca.read_bytes()
    assert {"localhost", "127.0.0.1", "10.9.8.7"} <= names()
    serial = first.certificate.read_bytes()
    make_authority(tmp_path)
    assert first.certificate.read_bytes() == serial
    make_authority(tmp_path, ["other.example"])
    assert "other.example" in names() and first.ca.read_bytes() == ca
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_kubeconfig(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    path = write_kubeconfig(tmp_path / "kc", "https://127.0.0.1:1", authority.ca, "secret", "me")
    content = yaml.safe_load(path.read_text())
    assert content["users"] == [{"name": "me", "user": {"token": "secret"}}]
    assert content["current-context"] == "cilia"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def field(number: int, payload: bytes | int) -> bytes:
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    return bytes([number << 3 | 2, len(payload)]) + payload


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    typed = field(1, api_version.encode()) + field(2, kind.encode())
    return b"k8s\x00" + field(1, typed) + field(2, raw)


def test_protobuf_bodies() -> None:
    meta = field(
        1, field(1, b"c") + field(3, b"ns") + field(8, b"") + field(11, field(1, b"k") + field(2, b"v"))
    )
    data = field(2, field(1, b"a") + field(2, b"1"))
    assert protobuf.decode_body(envelope("v1", "ConfigMap", meta + data)) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": "ns", "labels": {"k": "v"}},
        "data": {"a": "1"},
    }
    secret = protobuf.decode_body(envelope("v1", "Secret", meta + data))
    assert secret["data"] == {"a": "MQ=="}
    port = field(1, b"http") + field(3, 80) + field(4, field(1, 1) + field(2, 0) + field(3, b"web"))
    service = protobuf.decode_body(envelope("v1", "Service", field(2, field(1, port))))
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "web"}]
    options = protobuf.decode_body(envelope("v1", "DeleteOptions", field(1, 0) + field(4, b"Background")))
    assert options["gracePeriodSeconds"] == 0 and options["propagationPolicy"] == "Background"


def test_kinds_that_must_come_as_json() -> None:
    with pytest.raises(ApiError) as caught:
        protobuf.decode_body(envelope("v1", "Pod", b""))
    assert caught.value.code == 415


@given(st.binary(max_size=80), st.sampled_from(["ConfigMap", "Service", "Secret", "DeleteOptions"]))
def test_any_bytes_are_read_or_refused(raw: bytes, kind: str) -> None:
    for body in (raw, b"k8s\x00" + raw, envelope("v1", kind, raw)):
        try:
            protobuf.decode_body(body)
        except ApiError as error:
            assert error.code in (400, 415)
