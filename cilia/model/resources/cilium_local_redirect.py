"""CiliumLocalRedirectPolicy, version v2: traffic to an address or a Service goes to pods of the same node.

Source: the CRD schema of cilium.io/v2.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from cilia.model.resources.base import LabelSelector, Object, ObjectMeta, OneOf, Strict, pattern

_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
Address = Annotated[
    str,
    pattern(rf"(({_OCTET}\.){{3}}{_OCTET}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)", description="An IP address."),
]
PortNumber = Annotated[
    str,
    pattern(
        r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])",
        description="A port number from 1 to 65535, as text.",
    ),
]
PortName = Annotated[
    str, pattern(r"([0-9]{1,4}|([0-9]-?)*[a-zA-Z](-?[a-zA-Z0-9])*)", description="A port's name.")
]


class PortInfo(Strict, frozen=True, kw_only=True):
    """A port; its name ties a port of the frontend to one of the backends."""

    port: PortNumber
    protocol: Literal["TCP", "UDP"]
    name: PortName | None = None


class AddressMatcher(Strict, frozen=True, kw_only=True):
    """The frontend by address."""

    ip: Address
    to_ports: tuple[PortInfo, ...]


class ServiceMatcher(Strict, frozen=True, kw_only=True):
    """The frontend by Service: its cluster addresses; without ports all of them."""

    namespace: str
    service_name: str
    to_ports: tuple[PortInfo, ...] | None = None


class RedirectFrontend(OneOf, frozen=True, kw_only=True):
    """What clients ask for."""

    one_of: ClassVar[tuple[str, ...]] = ("addressMatcher", "serviceMatcher")

    address_matcher: AddressMatcher | None = None
    service_matcher: ServiceMatcher | None = None


class RedirectBackend(Strict, frozen=True, kw_only=True):
    """Who answers: ready pods of the client's node, in the policy's namespace."""

    local_endpoint_selector: LabelSelector
    to_ports: tuple[PortInfo, ...]


class LocalRedirectSpec(Strict, frozen=True, kw_only=True):
    """A frontend and its backends."""

    server_defaults: ClassVar[tuple[str, ...]] = ("skip_redirect_from_backend",)

    redirect_frontend: RedirectFrontend
    redirect_backend: RedirectBackend
    skip_redirect_from_backend: bool = False
    description: str | None = None


class LocalRedirectStatus(Object, frozen=True, kw_only=True):
    """Of the schema only: nobody writes it."""

    ok: Annotated[bool | None, Meta(description="Whether the policy is in force.")] = None


class CiliumLocalRedirectPolicy(Object, frozen=True, kw_only=True):
    """Redirects traffic to pods of the same node."""

    metadata: ObjectMeta
    spec: LocalRedirectSpec | None = None
    status: LocalRedirectStatus | None = None
