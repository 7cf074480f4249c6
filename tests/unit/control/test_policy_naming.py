"""Names of ports follow the endpoints that give them."""

from __future__ import annotations

from cilia.control.policy.meaning.naming import PortNames
from cilia.control.policy.rules import TCP, UDP, PortName
from cilia.model.endpoint import NamedPort
from cilia.model.ids import IdentityId

WEB = IdentityId(300)
HTTP = PortName(TCP, "http")


def test_two_endpoints_of_one_identity_with_different_numbers() -> None:
    names = PortNames()
    assert names.claim("a", (WEB, (NamedPort("http", 80),))) == [(WEB, HTTP)]
    assert names.claim("b", (WEB, (NamedPort("http", 8080),))) == [(WEB, HTTP)]
    assert names.claim("c", (WEB, (NamedPort("http", 80),))) == []
    assert names.numbers(WEB, HTTP) == {80, 8080}
    assert set(names.naming(HTTP)) == {WEB}
    assert names.all() == {WEB: frozenset({NamedPort("http", 80), NamedPort("http", 8080)})}
    assert names.claim("a", None) == []
    assert names.claim("c", None) == [(WEB, HTTP)]
    assert names.numbers(WEB, HTTP) == {8080}
    assert names.claim("b", None) == [(WEB, HTTP)]
    assert not names.naming(HTTP)
    assert names.claim("b", None) == []


def test_a_name_is_of_one_protocol() -> None:
    names = PortNames()
    names.claim("a", (WEB, (NamedPort("dns", 53, "UDP"), NamedPort("dns", 5353, "TCP"))))
    assert names.numbers(WEB, PortName(UDP, "dns")) == {53}
    assert names.numbers(WEB, PortName(TCP, "dns")) == {5353}


def test_an_endpoint_that_changes_its_identity() -> None:
    names = PortNames()
    names.claim("a", (WEB, (NamedPort("http", 80),)))
    other = IdentityId(301)
    assert set(names.claim("a", (other, (NamedPort("http", 80),)))) == {(WEB, HTTP), (other, HTTP)}
    assert set(names.naming(HTTP)) == {other}


def test_nobodys_ports_count_for_nobody() -> None:
    names = PortNames()
    assert names.claim("a", (IdentityId(0), (NamedPort("http", 80),))) == []
    assert not names.naming(HTTP)
