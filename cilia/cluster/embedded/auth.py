"""Who is asking, and may they: tokens and roles.

There is no anonymous access. A token is 32 random bytes; the token file holds only its SHA-256, so that
the file does not give it away, and comparing digests tells a guesser nothing. Roles are a closed list.
An *agent* is bound to its node: :func:`check_object` looks into what it wants to write.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from cilia.kit.files import Stamp, stamp

from .errors import ApiError, qualified
from .registry import Kind, Value
from .requests import Target

Role = Literal["admin", "operator", "agent", "lab", "viewer"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)


class User(msgspec.Struct, frozen=True):
    """An authenticated client. ``node`` is set for agents."""

    name: str
    role: Role
    node: str = ""

    @property
    def groups(self) -> list[str]:
        return [f"cilia:{self.role}", "system:authenticated", *(["system:masters"] * (self.role == "admin"))]


class TokenRecord(msgspec.Struct, frozen=True):
    """One line of the token file."""

    sha256: str
    user: str
    role: Role
    node: str = ""


class TokenFile(msgspec.Struct, frozen=True):
    """The token file as a whole."""

    tokens: list[TokenRecord] = []


class TokenFileError(Exception):
    """The token file can't be used; the message says why."""


def read_tokens(path: Path) -> TokenFile:
    """Read and check a token file; a missing one is empty."""
    try:
        if path.stat().st_mode & 0o077:
            raise TokenFileError(f"{path} is readable by others; make it private with: chmod 600 {path}")
        return msgspec.json.decode(path.read_bytes(), type=TokenFile)
    except FileNotFoundError:
        return TokenFile()
    except (OSError, msgspec.DecodeError) as error:
        raise TokenFileError(f"{path} is not a token file: {error}") from error


def digest(token: str) -> str:
    """How a token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


class Authenticator:
    """Looks tokens up, and reads the file again when it changed, so that new tokens work at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Stamp | None = None
        self._users: dict[str, User] = {}
        self._refresh()

    def user(self, authorization: str) -> User:
        """The user of an ``Authorization`` header; raises 401."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise ApiError(401, "Unauthorized: send a bearer token; the server has no anonymous access")
        try:
            self._refresh()
        except TokenFileError as error:
            raise ApiError(401, f"Unauthorized: the server's token file can't be used: {error}") from error
        wanted = digest(token.strip())
        found: User | None = None
        for known, user in self._users.items():
            if hmac.compare_digest(known, wanted):
                found = user
        if found is None:
            raise ApiError(401, "Unauthorized: the bearer token is not known here; get a new kubeconfig")
        return found

    def _refresh(self) -> None:
        seen = stamp(self._path)
        if seen != self._seen:
            self._seen = seen
            self._users = {}
            records = read_tokens(self._path).tokens
            self._users = {record.sha256: User(record.user, record.role, record.node) for record in records}


# --- roles -------------------------------------------------------------------------------------------------

_READ: Final = frozenset({"get", "list", "watch"})
_WRITE: Final = frozenset({"create", "update", "patch"})
_DELETE: Final = frozenset({"delete", "deletecollection"})
_FULL: Final = _READ | _WRITE | _DELETE

# What every user may do: ask about itself. (group/plural)
_SELF: Final = frozenset(
    {
        "authorization.k8s.io/selfsubjectaccessreviews",
        "authorization.k8s.io/selfsubjectrulesreviews",
        "authentication.k8s.io/selfsubjectreviews",
    }
)

# (role) -> (group/plural[/subresource]) -> verbs. "group/*" covers a whole group.
_AGENT_READS: Final = (
    "/namespaces",
    "/nodes",
    "/pods",
    "/services",
    "/endpoints",
    "discovery.k8s.io/endpointslices",
    "networking.k8s.io/networkpolicies",
    "apiextensions.k8s.io/customresourcedefinitions",
    "cilium.io/*",
    "policy.networking.k8s.io/clusternetworkpolicies",
)
RULES: Final[dict[Role, dict[str, frozenset[str]]]] = {
    "admin": {"*": _FULL},
    "viewer": {"*": _READ},
    "agent": {
        **dict.fromkeys(_AGENT_READS, _READ),
        "cilium.io/ciliumnodes": _FULL - {"deletecollection"},
        "cilium.io/ciliumnodes/status": _WRITE,
        "cilium.io/ciliumendpoints": _FULL - {"deletecollection"},
        "cilium.io/ciliumendpoints/status": _WRITE,
        # An identity never changes: who could rewrite one could make any pod anybody.
        "cilium.io/ciliumidentities": _READ | {"create"},
        "cilium.io/ciliumnetworkpolicies/status": _WRITE,
        "cilium.io/ciliumclusterwidenetworkpolicies/status": _WRITE,
        "policy.networking.k8s.io/clusternetworkpolicies/status": _WRITE,
        "/events": frozenset({"create", "patch", "update"}),
        "events.k8s.io/events": frozenset({"create", "patch", "update"}),
        "coordination.k8s.io/leases": _WRITE | {"get"},
    },
    "operator": {
        **dict.fromkeys(_AGENT_READS, _READ),
        "apiextensions.k8s.io/customresourcedefinitions": _READ | _WRITE,
        "cilium.io/ciliumnodes": _FULL,
        "cilium.io/ciliumnodes/status": _WRITE,
        "cilium.io/ciliumendpoints": _READ | _DELETE,
        "cilium.io/ciliumidentities": _FULL,
        "cilium.io/ciliumnetworkpolicies/status": _WRITE,
        "cilium.io/ciliumclusterwidenetworkpolicies/status": _WRITE,
        "policy.networking.k8s.io/clusternetworkpolicies/status": _WRITE,
        "/nodes": _READ | {"patch"},
        "/nodes/status": frozenset({"patch"}),
        "/services/status": frozenset({"patch", "update"}),
        "/events": frozenset({"create", "patch", "update"}),
        "events.k8s.io/events": frozenset({"create", "patch", "update"}),
        "coordination.k8s.io/leases": _READ | _WRITE | {"delete"},
    },
    "lab": {
        "/namespaces": _READ | _WRITE,
        "/nodes": _FULL,
        "/nodes/status": _WRITE,
        "/pods": _FULL,
        "/pods/status": _WRITE,
        "/pods/binding": frozenset({"create"}),
        "/services": _READ | _WRITE,
        "/services/status": _WRITE,
        "discovery.k8s.io/endpointslices": _FULL,
        "/events": _FULL,
        "events.k8s.io/events": _FULL,
        "coordination.k8s.io/leases": _FULL,
        "apiextensions.k8s.io/customresourcedefinitions": _READ,
        "cilium.io/*": _READ,
        "networking.k8s.io/networkpolicies": _READ,
        "policy.networking.k8s.io/clusternetworkpolicies": _READ,
    },
}
_SECRET: Final = "/secrets"


def allowed(user: User, verb: str, target: Target) -> bool:
    """Whether a role may use a verb on a target at all."""
    resource = f"{target.group}/{target.plural}"
    if resource in _SELF and verb == "create":
        return True
    rules = RULES[user.role]
    if "*" in rules:
        return verb in rules["*"] and (user.role == "admin" or resource != _SECRET)
    if target.subresource:
        return verb in rules.get(f"{resource}/{target.subresource}", ())
    if resource in rules:
        return verb in rules[resource]
    return verb in rules.get(f"{target.group}/*", ())


def describe(user: User) -> list[dict[str, list[str]]]:
    """The role as resource rules, for ``kubectl auth can-i --list``."""
    rules = []
    for resource, verbs in RULES[user.role].items():
        group, _, rest = resource.partition("/") if resource != "*" else ("*", "", "*")
        rules.append({"verbs": sorted(verbs), "apiGroups": [group], "resources": [rest]})
    return rules


def authorize(user: User, verb: str, target: Target) -> None:
    """Raise the standard 403 unless the role allows the request."""
    if not allowed(user, verb, target):
        raise forbidden(user, verb, target)


def forbidden(user: User, verb: str, target: Target, why: str = "") -> ApiError:
    """The sentence of Kubernetes' RBAC, with a reason where there is one."""
    resource = target.plural + (f"/{target.subresource}" if target.subresource else "")
    name = f' "{target.name}"' if target.name else ""
    scope = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
    text = (
        f'{qualified(target.plural, target.group)}{name} is forbidden: User "{user.name}" cannot {verb} '
        f'resource "{resource}" in API group "{target.group}" {scope}'
    )
    details = {"name": target.name, "group": target.group, "kind": target.plural}
    return ApiError(
        403,
        text + (f": {why}" if why else ""),
        details={key: value for key, value in details.items() if value},
    )


# (resource, namespace, name) -> the object
Lookup = Callable[[str, str, str], Value | None]


def check_object(
    user: User, verb: str, target: Target, kind: Kind, old: Value | None, new: Value | None, lookup: Lookup
) -> None:
    """Raise 403 if an agent writes what belongs to another node. ``new`` is None for a delete."""
    if user.role != "agent":
        return
    name = ((new or old or {}).get("metadata") or {}).get("name") or ""
    why = ""
    match kind.key:
        case "cilium.io/ciliumnodes":
            if name != user.node:
                why = f"this agent may write only the CiliumNode of its own node {user.node}"
        case "cilium.io/ciliumendpoints":
            why = _check_endpoint(user, name, target.namespace, old, new, lookup)
        case "coordination.k8s.io/leases":
            if name != user.node and not name.endswith(f"-{user.node}"):
                why = f"this agent may write only leases of its own node {user.node}"
    if why:
        raise forbidden(user, verb, target, why)


def _check_endpoint(
    user: User, name: str, namespace: str, old: Value | None, new: Value | None, lookup: Lookup
) -> str:
    pod = lookup("/pods", namespace, name)
    if pod is not None:
        node = (pod.get("spec") or {}).get("nodeName")
        if node == user.node:
            return ""
        # A pod of the same name moved to another node: the old endpoint may still be cleaned up by its owner.
    if new is None and old is not None:
        holder = _endpoint_node(old)
        if pod is None and not holder:
            return ""
        return "" if holder and holder in _addresses(user.node, lookup) else _foreign(user)
    return _foreign(user)


def _foreign(user: User) -> str:
    return f"this agent may write only CiliumEndpoints of pods on its own node {user.node}"


def _endpoint_node(endpoint: Value) -> str:
    status: Any = endpoint.get("status") or {}
    networking = status.get("networking") if isinstance(status, dict) else None
    return str(networking.get("node") or "") if isinstance(networking, dict) else ""


def _addresses(node: str, lookup: Lookup) -> set[str]:
    known = lookup("cilium.io/ciliumnodes", "", node) or {}
    core = lookup("/nodes", "", node) or {}
    found = {a.get("ip") for a in (known.get("spec") or {}).get("addresses") or () if isinstance(a, dict)}
    found |= {a.get("address") for a in (core.get("status") or {}).get("addresses") or ()}
    return {address for address in found if address}
