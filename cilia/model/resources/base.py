"""What all API objects share: naming, metadata, label selectors, conditions.

Source: Kubernetes API conventions and the meta/v1 reference.
"""

import functools
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

_ACRONYMS = {
    "ca": "CA",
    "cidr": "CIDR",
    "cidrs": "CIDRs",
    "fqdns": "FQDNs",
    "id": "ID",
    "ip": "IP",
    "ips": "IPs",
    "tls": "TLS",
}


@functools.cache
def camel_name(field: str) -> str:
    """Return the API name of a Python field: `to_cidr_set` is `toCIDRSet`, `except_` is `except`.

    The Kubernetes convention is lower camel case with acronyms kept whole unless they come first.
    """
    first, *rest = field.rstrip("_").split("_")
    return first + "".join(_ACRONYMS.get(part, part.capitalize()) for part in rest)


def kebab_name(field: str) -> str:
    """Return the dashed name that CiliumEndpoint, CiliumIdentity and CiliumNode use for most fields."""
    return field.rstrip("_").replace("_", "-")


class Object(msgspec.Struct, frozen=True, omit_defaults=True, rename=camel_name):
    """A part of an API object with camel-case names; fields at their default are not written."""


class Dashed(msgspec.Struct, frozen=True, omit_defaults=True, rename=kebab_name):
    """A part of a cilium.io object with dashed names."""


class Strict(msgspec.Struct, frozen=True, omit_defaults=True, rename=camel_name, forbid_unknown_fields=True):
    """A part of a policy: unknown fields are errors."""

    one_of: ClassVar[tuple[str, ...]] = ()
    """API fields of which exactly one must be present (OneOf); the schema says the same with `oneOf`."""
    property_bounds: ClassVar[tuple[int, int | None]] = (0, None)
    """How many fields may be set, at least and at most: of the schema only."""


class OneOf(Strict, frozen=True):
    """A part of a policy that checks its `one_of`: there may be thousands of others, which need no check."""

    def __post_init__(self) -> None:
        given = [name for name in self.one_of if _by_wire_name(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"exactly one of {', '.join(self.one_of)} must be set, found {found}")


def _by_wire_name(part: OneOf, name: str) -> Any:
    fields = type(part).__struct_encode_fields__
    return getattr(part, type(part).__struct_fields__[fields.index(name)])


def with_format(name: str) -> Meta:
    """Return schema metadata that states an OpenAPI `format`, such as `cidr` or `int64`."""
    return Meta(extra_json_schema={"format": name})


def pattern(body: str, *, max_length: int | None = None, description: str | None = None) -> Meta:
    """Return metadata for text that must match the whole of `body`.

    Python's `$` also matches before a final line feed, the API server's (RE2) does not: decoding uses the
    strict end anchor and the schema the portable one. `body` must not need exponential backtracking.
    """
    return Meta(
        pattern=rf"^{body}\Z",
        max_length=max_length,
        description=description,
        extra_json_schema={"pattern": f"^{body}$"},
    )


Int32 = Annotated[int, with_format("int32")]
Int64 = Annotated[int, with_format("int64")]
Time = Annotated[str, with_format("date-time")]

DNS_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"


class OwnerReference(Object, frozen=True, kw_only=True):
    """The object this one lives and dies with."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Object, frozen=True, kw_only=True):
    """The metadata of an API object. `resource_version` is opaque; times are RFC 3339 text."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: tuple[OwnerReference, ...] | None = None
    finalizers: tuple[str, ...] | None = None


class AnyObject(Object, frozen=True, kw_only=True):
    """Any API object seen only by its metadata, whatever its kind."""

    metadata: ObjectMeta = ObjectMeta()


class Condition(Object, frozen=True, kw_only=True):
    """One entry of `status.conditions`."""

    type: str
    status: str
    last_transition_time: Time | None = None
    message: str | None = None
    reason: str | None = None


LabelValue = Annotated[
    str,
    pattern(
        r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
        max_length=63,
        description="A label's value: letters, digits, dashes, dots and underscores, "
        "with a letter or digit at both ends.",
    ),
]


class LabelSelectorRequirement(Strict, frozen=True, kw_only=True):
    """A key, an operator and the values it compares with."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] | None = None


class LabelSelector(Strict, frozen=True, kw_only=True):
    """All of match_labels and all of match_expressions hold; the empty selector selects everything."""

    match_labels: dict[str, LabelValue] | None = None
    match_expressions: tuple[LabelSelectorRequirement, ...] | None = None


class AddressPair(Dashed, frozen=True, kw_only=True):
    """One address of each family."""

    ipv4: str | None = None
    ipv6: str | None = None


class EncryptionSpec(Dashed, frozen=True, kw_only=True):
    """The number of the encryption key in use; 0 is none."""

    key: int | None = None
