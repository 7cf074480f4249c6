"""What policies say about applications: checked, and then refused, since nothing here enforces it yet.

HTTP, Kafka and DNS rules, DNS names as peers, TLS and listeners. A fault in one is told as what it is; only
what is otherwise right is told to be "not enforced yet". Mutual authentication is the readers' own.

Source: the Cilium policy language reference; RFC 1035 for lengths of names; RE2's syntax for expressions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from cilia.control.policy.dialects.reading import Reader
from cilia.model.policy import Direction
from cilia.model.resources.base import camel_name
from cilia.model.resources.cilium_policy import (
    FQDNSelector,
    HTTPRule,
    KafkaRule,
    L7Rules,
    Listener,
    PortProtocol,
    PortRule,
)

NOT_YET = "Application-layer rules are not enforced yet: remove this part, or keep to ports."

PROXIED = ("rules", "terminating_tls", "originating_tls", "server_names", "listener")
"""Fields of port rules that need a proxy."""

MAX_NAME, MAX_LABEL = 253, 63
"""Characters of a DNS name without its final dot, and of one label of it (RFC 1035)."""

MAX_EXPRESSION = 4096
"""Characters of an expression."""

_TOPIC = re.compile(r"[a-zA-Z0-9._-]+")
_SERVER_NAME = re.compile(r"(\*{1,2}\.)?[a-zA-Z0-9_*]([-a-zA-Z0-9_*]*)(\.[a-zA-Z0-9_*][-a-zA-Z0-9_*]*)*")
_NOT_RE2 = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]?|\(\?(?:[=!#>(]|<[=!]|P[=>])", re.DOTALL)
"""Escapes, classes, and what Python's expressions have and RE2's lack: looking around, references."""


def checks(reader: Reader, field: str, value: Any, path: str) -> Callable[[], None] | None:
    """The check of a field of a rule that is not enforced; None where there is nothing to check."""
    return partial(_fqdns, reader, value, path) if field == "to_fqdns" else None


def read(reader: Reader, group: PortRule, path: str, direction: Direction) -> None:
    """Check what a group of ports demands of the application, and refuse it."""
    given = [field for field in PROXIED if getattr(group, field) is not None]
    if not given:
        return
    ports = partial(_ports, reader, group.ports or (), f"{path}.ports", dns=_is_dns(group.rules))
    if group.listener is not None and group.rules is not None:
        reader.refuse(f"{path}.listener", "A listener brings its own rules: remove listener, or rules.")
    if group.server_names is not None and group.rules is not None and group.terminating_tls is None:
        reader.refuse(
            f"{path}.serverNames", "Rules see nothing of TLS: add terminatingTLS, or remove serverNames."
        )
    for field in given:
        where = f"{path}.{camel_name(field)}"
        reader.unsupported(where, NOT_YET, partial(_check, reader, group, field, where, direction, ports))


def _check(
    reader: Reader, group: PortRule, field: str, path: str, direction: Direction, ports: Callable[[], None]
) -> None:
    ports()
    if field == "rules" and group.rules is not None:
        _rules(reader, group.rules, path, direction)
    elif field == "server_names":
        _server_names(reader, group.server_names or (), path)
    elif field == "listener" and group.listener is not None:
        _listener(reader, group.listener, path)


def _is_dns(rules: L7Rules | None) -> bool:
    return rules is not None and rules.dns is not None


def _ports(reader: Reader, ports: Iterable[PortProtocol], path: str, *, dns: bool) -> None:
    """A proxy listens for certain ports of TCP; only DNS is UDP's, too."""
    for number, port in enumerate(ports):
        where = f"{path}[{number}]"
        if not dns and port.protocol != "TCP":
            reader.refuse(f"{where}.protocol", "Application-layer rules are about TCP: write protocol: TCP.")
        if dns and port.protocol in ("SCTP", "VRRP", "IGMP"):
            reader.refuse(f"{where}.protocol", "DNS is spoken over UDP and TCP: write one of them, or ANY.")
        if port.end_port and port.end_port != int(port.port if port.port.isdecimal() else 0):
            reader.refuse(f"{where}.endPort", "Application-layer rules take no ranges: write single ports.")
        elif port.port.isdecimal() and not int(port.port):
            reader.refuse(f"{where}.port", "Application-layer rules need certain ports: write their numbers.")


def _rules(reader: Reader, rules: L7Rules, path: str, direction: Direction) -> None:
    for number, http in enumerate(rules.http or ()):
        _http(reader, http, f"{path}.http[{number}]")
    for number, kafka in enumerate(rules.kafka or ()):
        _kafka(reader, kafka, f"{path}.kafka[{number}]")
    if rules.dns is not None:
        if direction is Direction.INGRESS:
            reader.refuse(f"{path}.dns", "DNS rules are about questions that pods ask: move them to egress.")
        _fqdns(reader, rules.dns, f"{path}.dns")
    if rules.l7 is not None and rules.l7proto is None:
        reader.refuse(f"{path}.l7", "Nothing says which protocol these are of: give l7proto.")


def _http(reader: Reader, rule: HTTPRule, path: str) -> None:
    for field, text in (("path", rule.path), ("method", rule.method), ("host", rule.host)):
        if text is not None:
            _expression(reader, text, f"{path}.{field}")
    for number, header in enumerate(rule.headers or ()):
        if not header.strip():
            reader.refuse(f"{path}.headers[{number}]", "The header is empty: write its name, or name: value.")
    for number, match in enumerate(rule.header_matches or ()):
        if match.value and match.secret is not None:
            reader.refuse(
                f"{path}.headerMatches[{number}]", "The value is given twice: keep either value or secret."
            )


def _expression(reader: Reader, text: str, path: str) -> None:
    if len(text) > MAX_EXPRESSION:
        reader.refuse(path, f"The expression is longer than {MAX_EXPRESSION} characters: split the rule.")
        return
    for part in _NOT_RE2.finditer(text):
        if part[0].startswith("(?") or (part[0][0] == "\\" and part[0][1:] in tuple("123456789")):
            reader.refuse(path, f"{part[0]!r} is not in RE2's expressions: write it without.")
            return
    try:
        with warnings.catch_warnings():
            # Of classes such as [[:alpha:]], which RE2 knows and Python may come to read otherwise.
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        reader.refuse(path, f"This is no regular expression: {_reason(error)}.")


def _reason(error: Exception) -> str:
    return f"correct it ({error})" if isinstance(error, re.error) else "it is nested too deeply, simplify it"


def _kafka(reader: Reader, rule: KafkaRule, path: str) -> None:
    if rule.role is not None and rule.api_key:
        reader.refuse(path, "A role stands for its requests: keep either role or apiKey.")
    if rule.api_version and not (rule.api_version.isascii() and rule.api_version.isdecimal()):
        reader.refuse(f"{path}.apiVersion", "The version of a request is a number: write it in digits.")
    if rule.topic and not _TOPIC.fullmatch(rule.topic):
        reader.refuse(
            f"{path}.topic", "Topics are letters, digits, dots, dashes and underscores: correct it."
        )


def _fqdns(reader: Reader, names: Iterable[FQDNSelector], path: str) -> None:
    for number, name in enumerate(names):
        field = "matchName" if name.match_name is not None else "matchPattern"
        text = (name.match_name or name.match_pattern or "").removesuffix(".")
        longest = max(len(label) - label.count("*") for label in text.split("."))
        if len(text) - text.count("*") > MAX_NAME or longest > MAX_LABEL:
            reader.refuse(
                f"{path}[{number}].{field}",
                f"No DNS name is this long: at most {MAX_LABEL} characters between dots, {MAX_NAME} in all.",
            )


def _server_names(reader: Reader, names: tuple[str, ...], path: str) -> None:
    if not names:
        reader.refuse(path, "The list is empty, no server would be allowed: give names, or remove it.")
    for number, name in enumerate(names):
        if len(name) > MAX_NAME or not _SERVER_NAME.fullmatch(name):
            reader.refuse(f"{path}[{number}]", f"{name[:60]!r} is no name of a server: write a DNS name.")


def _listener(reader: Reader, listener: Listener, path: str) -> None:
    if not reader.policy.namespace and listener.envoy_config.kind == "CiliumEnvoyConfig":
        reader.refuse(
            f"{path}.envoyConfig.kind",
            "A clusterwide policy can't use what is in a namespace: use a CiliumClusterwideEnvoyConfig.",
        )
