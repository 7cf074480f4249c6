"""Custom resource definitions derived from the structs of this package.

One function turns a struct into a structural OpenAPI v3 schema as apiextensions.k8s.io/v1 wants it: no
references, no nulls, unions only as int-or-string; field order is the structs'. Pure: the operator
applies the result, the repository keeps it under `deploy/crds`.

Source: Kubernetes "Extend the API with CustomResourceDefinitions", section on structural schemas.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import inspect

from cilia.model.resources.base import ObjectMeta, Strict
from cilia.model.resources.cilium_cidr_group import CiliumCIDRGroup
from cilia.model.resources.cilium_endpoint import CiliumEndpoint
from cilia.model.resources.cilium_identity import CiliumIdentity
from cilia.model.resources.cilium_local_redirect import CiliumLocalRedirectPolicy
from cilia.model.resources.cilium_node import CiliumNode
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.cluster_network_policy import ClusterNetworkPolicy

Schema = dict[str, Any]

SCHEMA_VERSION_LABEL = "io.cilium.k8s.crd.schema.version"
SCHEMA_VERSION = "1.2.0"
"""Raise it with every release that changes a schema: a definition is never replaced by an older one."""

DIGEST_ANNOTATION = "cilia.io/schema-digest"
"""What tells definitions of one version apart."""


OWN_GROUP = "cilium.io"
"""Kinds of other groups may be defined by somebody else already: theirs is then left alone."""


class Column(msgspec.Struct, frozen=True):
    """An extra column of `kubectl get`."""

    name: str
    type: Literal["string", "integer", "date"]
    json_path: str
    description: str = ""
    priority: int = 0


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What a custom resource definition says besides its schema."""

    model: type[msgspec.Struct]
    plural: str
    short_names: tuple[str, ...]
    categories: tuple[str, ...] = ("cilium",)
    scope: Literal["Namespaced", "Cluster"]
    status_subresource: bool = True
    columns: tuple[Column, ...] = ()
    version: str = "v2"
    """The one that is stored."""
    also_served: tuple[str, ...] = ()
    """Other versions, with the same schema."""
    group: str = OWN_GROUP
    annotations: dict[str, str] = {}

    @property
    def kind(self) -> str:
        """The kind is the struct's name."""
        return self.model.__name__

    @property
    def name(self) -> str:
        """The name of the CustomResourceDefinition object."""
        return f"{self.plural}.{self.group}"


_AGE = Column("Age", "date", ".metadata.creationTimestamp")
_VALID = Column(
    "Valid", "string", '.status.conditions[?(@.type=="Valid")].status', "Whether the policy is accepted"
)

DEFINITIONS = (
    Definition(
        model=CiliumNetworkPolicy,
        plural="ciliumnetworkpolicies",
        short_names=("cnp", "ciliumnp"),
        categories=("cilium", "ciliumpolicy"),
        scope="Namespaced",
        columns=(_AGE, _VALID),
    ),
    Definition(
        model=CiliumClusterwideNetworkPolicy,
        plural="ciliumclusterwidenetworkpolicies",
        short_names=("ccnp",),
        categories=("cilium", "ciliumpolicy"),
        scope="Cluster",
        columns=(_VALID,),
    ),
    Definition(
        model=CiliumEndpoint,
        plural="ciliumendpoints",
        short_names=("cep", "ciliumep"),
        scope="Namespaced",
        # The whole object is its agent's: it writes status with the object.
        status_subresource=False,
        columns=(
            Column("Security Identity", "integer", ".status.identity.id"),
            Column("Ingress Enforcement", "string", ".status.policy.ingress.state", priority=1),
            Column("Egress Enforcement", "string", ".status.policy.egress.state", priority=1),
            Column("Visibility Policy", "string", ".status.visibility-policy-status", priority=1),
            Column("Endpoint State", "string", ".status.state"),
            Column("IPv4", "string", ".status.networking.addressing[0].ipv4"),
            Column("IPv6", "string", ".status.networking.addressing[0].ipv6"),
        ),
    ),
    Definition(
        model=CiliumIdentity,
        plural="ciliumidentities",
        short_names=("ciliumid",),
        scope="Cluster",
        columns=(Column("Namespace", "string", r".metadata.labels.io\.kubernetes\.pod\.namespace"), _AGE),
    ),
    Definition(
        model=CiliumNode,
        plural="ciliumnodes",
        short_names=("cn", "ciliumn"),
        scope="Cluster",
        columns=(
            Column("CiliumInternalIP", "string", '.spec.addresses[?(@.type=="CiliumInternalIP")].ip'),
            Column("InternalIP", "string", '.spec.addresses[?(@.type=="InternalIP")].ip'),
            _AGE,
        ),
    ),
    Definition(
        model=CiliumCIDRGroup,
        plural="ciliumcidrgroups",
        short_names=("ccg",),
        scope="Cluster",
        status_subresource=False,
        version="v2alpha1",
        also_served=("v2",),
    ),
    Definition(
        model=CiliumLocalRedirectPolicy,
        plural="ciliumlocalredirectpolicies",
        short_names=("clrp",),
        categories=("cilium", "ciliumpolicy"),
        scope="Namespaced",
        status_subresource=False,
        columns=(_AGE,),
    ),
    Definition(
        model=ClusterNetworkPolicy,
        group="policy.networking.k8s.io",
        version="v1alpha2",
        plural="clusternetworkpolicies",
        # Its authors' short name, cnp, is CiliumNetworkPolicy's.
        short_names=(),
        categories=(),
        scope="Cluster",
        columns=(
            Column("Tier", "string", ".spec.tier"),
            Column("Priority", "string", ".spec.priority"),
            _AGE,
            _VALID,
        ),
        # The API server demands it of every definition in a group of Kubernetes.
        annotations={
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/300"
        },
    ),
)


def custom_resource_definition(definition: Definition) -> dict[str, Any]:
    """Return the CustomResourceDefinition object, ready to be written as JSON or YAML."""
    spec = {
        "group": definition.group,
        "names": {
            "kind": definition.kind,
            "listKind": f"{definition.kind}List",
            "plural": definition.plural,
            "singular": definition.kind.lower(),
            "shortNames": list(definition.short_names),
            "categories": list(definition.categories),
        },
        "scope": definition.scope,
        "versions": [_version(definition, name) for name in (definition.version, *definition.also_served)],
    }
    metadata = {
        "name": definition.name,
        "labels": {SCHEMA_VERSION_LABEL: SCHEMA_VERSION},
        "annotations": {
            DIGEST_ANNOTATION: hashlib.blake2b(msgspec.json.encode(spec), digest_size=8).hexdigest(),
            **definition.annotations,
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": spec,
    }


def _version(definition: Definition, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "served": True,
        "storage": name == definition.version,
        "additionalPrinterColumns": [_column(column) for column in definition.columns],
        "schema": {"openAPIV3Schema": object_schema(definition.model)},
        "subresources": {"status": {}} if definition.status_subresource else {},
    }


def _column(column: Column) -> dict[str, Any]:
    written: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    if column.description:
        written["description"] = column.description
    if column.priority:
        written["priority"] = column.priority
    return written


def object_schema(model: type[msgspec.Struct]) -> Schema:
    """Return the schema of a whole object; the API server knows apiVersion, kind and metadata itself."""
    schema = _schema(inspect.type_info(model))
    schema["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        **schema["properties"],
    }
    return schema


def _schema(info: inspect.Type) -> Schema:
    """Dispatch on the type; a type without a structural schema is a mistake in a model and raises."""
    match info:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return {**_schema(inner), **(extra or {})}
        case inspect.StructType():
            return _struct(info)
        case inspect.UnionType():
            return _union(info)
        case inspect.VarTupleType() | inspect.ListType():
            return _bounded(
                {"type": "array", "items": _schema(info.item_type)},
                minItems=info.min_length,
                maxItems=info.max_length,
            )
        case inspect.DictType(value_type=values):
            return {"type": "object", "additionalProperties": _schema(values)}
        case inspect.LiteralType(values=values):
            # `inspect` sorts the values; the order in which a schema lists them means nothing.
            return {"type": "string", "enum": list(values)}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType():
            return _bounded({"type": "integer"}, minimum=info.ge, maximum=info.le)
        case inspect.StrType():
            return _bounded(
                {"type": "string"}, minLength=info.min_length, maxLength=info.max_length, pattern=info.pattern
            )
    raise TypeError(f"{info} has no structural schema; use another type in the model")


def _bounded(schema: Schema, **bounds: Any) -> Schema:
    return schema | {name: value for name, value in bounds.items() if value is not None}


def _struct(info: inspect.StructType) -> Schema:
    if info.cls is ObjectMeta:
        return {"type": "object"}
    schema: Schema = {"type": "object"}
    if info.cls.__doc__:
        schema["description"] = " ".join(info.cls.__doc__.split())
    schema["properties"] = {field.encode_name: _field(info, field) for field in info.fields}
    required = [field.encode_name for field in info.fields if field.required]
    if required:
        schema["required"] = required
    one_of = info.cls.one_of if issubclass(info.cls, Strict) else ()
    least, most = getattr(info.cls, "property_bounds", (0, None))
    schema |= _bounded({}, minProperties=least or None, maxProperties=most)
    if one_of:
        schema["oneOf"] = [{"required": [name], "properties": {name: {}}} for name in one_of]
    return schema


def _field(owner: inspect.StructType, field: inspect.Field) -> Schema:
    schema = _schema(field.type)
    if field.name in getattr(owner.cls, "server_defaults", ()):
        schema["default"] = field.default
    return schema


def _union(info: inspect.UnionType) -> Schema:
    """Absent-or-T is T (a field that is not required may be absent); integer-or-text has its own keyword."""
    members = [member for member in info.types if not isinstance(member, inspect.NoneType)]
    if len(members) == 1:
        return _schema(members[0])
    schemas = [_schema(member) for member in members]
    if sorted(schema["type"] for schema in schemas) != ["integer", "string"]:
        raise TypeError(f"{info} has no structural schema; use one type, or an integer or text")
    text = next(schema for schema in schemas if schema["type"] == "string")
    text.pop("type")
    return {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], **text}


def all_definitions() -> Iterator[dict[str, Any]]:
    """Yield the CustomResourceDefinition objects of every kind Cilia owns."""
    for definition in DEFINITIONS:
        yield custom_resource_definition(definition)
