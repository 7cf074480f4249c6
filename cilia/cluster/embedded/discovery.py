"""What the server says about itself: API groups, resources, versions and schemas. Pure.

Sources: https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api (aggregated v2 and the
older documents per group) and the OpenAPI v3 endpoint, of which ``kubectl explain`` and ``apply`` read parts.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Any, Final

import msgspec

from .registry import Kind, Registry, Version

GIT_VERSION: Final = "v1.36.0+cilia"

# Kinds that are asked but never stored: (group, version, plural, kind).
QUESTIONS: Final = (
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    ("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview"),
)

Document = dict[str, Any]


def version() -> Document:
    """``/version``."""
    major, minor = GIT_VERSION[1:].split(".")[:2]
    return {
        "major": major,
        "minor": minor,
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": platform.python_implementation(),
        "platform": f"linux/{platform.machine()}",
    }


def groups(registry: Registry) -> dict[str, list[str]]:
    """Named groups with versions, those of :data:`QUESTIONS` included."""
    found = registry.groups()
    for group, served, _, _ in QUESTIONS:
        found.setdefault(group, [served])
    return found


def core_versions() -> Document:
    """``/api``."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(registry: Registry) -> Document:
    """``/apis``."""
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name, versions) for name, versions in groups(registry).items()],
    }


def group(registry: Registry, name: str) -> Document | None:
    """``/apis/<group>``."""
    versions = groups(registry).get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if versions else None


def _group(name: str, versions: list[str]) -> Document:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def resource_list(registry: Registry, group: str, version: str) -> Document | None:
    """``/api/v1`` and ``/apis/<group>/<version>``."""
    resources = [
        entry for kind, served in registry.of_version(group, version) for entry in _resources(kind, served)
    ]
    resources += [
        {"name": plural, "singularName": kind.lower(), "namespaced": False, "kind": kind, "verbs": ["create"]}
        for question_group, question_version, plural, kind in QUESTIONS
        if (question_group, question_version) == (group, version)
    ]
    if not resources:
        return None
    group_version = f"{group}/{version}" if group else version
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }


def _resources(kind: Kind, version: Version) -> list[Document]:
    entry: Document = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    return [entry, *(_subresource(kind, name) for name in _subresources(kind, version))]


def _subresources(kind: Kind, version: Version) -> list[str]:
    return [name for name in kind.subresources if name != "status" or version.status]


def _subresource(kind: Kind, name: str) -> Document:
    return {
        "name": f"{kind.plural}/{name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": "Binding" if name == "binding" else kind.kind,
        "verbs": _subresource_verbs(name),
    }


def _subresource_verbs(name: str) -> list[str]:
    return {"binding": ["create"], "finalize": ["update"]}.get(name, ["get", "patch", "update"])


def aggregated(registry: Registry, *, core: bool) -> Document:
    """``/api`` or ``/apis`` as one ``APIGroupDiscoveryList`` (v2)."""
    wanted = {"": ["v1"]} if core else groups(registry)
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [_discovered(registry, name, versions) for name, versions in wanted.items()],
    }


def _discovered(registry: Registry, name: str, versions: list[str]) -> Document:
    return {
        "metadata": {"name": name, "creationTimestamp": None} if name else {"creationTimestamp": None},
        "versions": [
            {
                "version": version,
                "freshness": "Current",
                "resources": _discovered_resources(registry, name, version),
            }
            for version in versions
        ],
    }


def _discovered_resources(registry: Registry, group: str, version: str) -> list[Document]:
    def response(kind: str) -> Document:
        return {"group": group, "version": version, "kind": kind}

    found: list[Document] = []
    for kind, served in registry.of_version(group, version):
        entry: Document = {
            "resource": kind.plural,
            "responseKind": response(kind.kind),
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "singularResource": kind.singular,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        if below := _subresources(kind, served):
            entry["subresources"] = [
                {
                    "subresource": name,
                    "responseKind": response("Binding" if name == "binding" else kind.kind),
                    "verbs": _subresource_verbs(name),
                }
                for name in below
            ]
        found.append(entry)
    found += [
        {
            "resource": plural,
            "responseKind": response(kind),
            "scope": "Cluster",
            "singularResource": kind.lower(),
            "verbs": ["create"],
        }
        for question_group, question_version, plural, kind in QUESTIONS
        if (question_group, question_version) == (group, version)
    ]
    return found


# --- OpenAPI v3 --------------------------------------------------------------------------------------------


def openapi_index(registry: Registry) -> Document:
    """``/openapi/v3``: where each group version's document is, with a hash that changes with its content."""
    places = {"api/v1": ("", "v1")}
    for name, versions in registry.groups().items():
        places.update({f"apis/{name}/{version}": (name, version) for version in versions})
    paths = {}
    for path, (name, served) in places.items():
        body = msgspec.json.encode(openapi(registry, name, served))
        paths[path] = {
            "serverRelativeURL": f"/openapi/v3/{path}?hash={hashlib.sha256(body).hexdigest()[:32].upper()}"
        }
    return {"paths": paths}


def openapi(registry: Registry, group: str, version: str) -> Document | None:
    """``/openapi/v3/apis/<group>/<version>``: schemas, and paths that promise fieldValidation."""
    kinds = registry.of_version(group, version)
    if not kinds:
        return None
    schemas: Document = {}
    paths: Document = {}
    for kind, served in kinds:
        name = _schema_name(kind, served)
        gvk = {"group": kind.group, "version": served.name, "kind": kind.kind}
        schemas[name] = {**_published(served.schema or {}), "x-kubernetes-group-version-kind": [gvk]}
        paths.update(_paths(kind, served, name, gvk))
    schemas[_META] = _META_SCHEMA
    return {
        "openapi": "3.0.0",
        "info": {"title": "Cilia API server", "version": GIT_VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    }


_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "object", "additionalProperties": _TEXT}
_META_SCHEMA: Final[Document] = {
    "description": "Standard metadata of an object.",
    "type": "object",
    "properties": {
        "name": _TEXT,
        "generateName": _TEXT,
        "namespace": _TEXT,
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "uid": _TEXT,
        "resourceVersion": _TEXT,
        "generation": {"type": "integer", "format": "int64"},
        "creationTimestamp": {"type": "string", "format": "date-time"},
        "deletionTimestamp": {"type": "string", "format": "date-time"},
        "finalizers": {"type": "array", "items": _TEXT},
        "ownerReferences": {"type": "array", "items": {"type": "object"}},
    },
}


def _schema_name(kind: Kind, version: Version) -> str:
    group = ".".join(reversed(kind.group.split("."))) if kind.group else "io.k8s.api.core"
    return f"{group}.{version.name}.{kind.kind}"


def _published(schema: Document) -> Document:
    properties = {"apiVersion": _TEXT, "kind": _TEXT, **(schema.get("properties") or {})}
    properties["metadata"] = {"allOf": [{"$ref": f"#/components/schemas/{_META}"}], "default": {}}
    return {**schema, "type": "object", "properties": properties}


def _paths(kind: Kind, version: Version, schema: str, gvk: Document) -> Document:
    root = f"/apis/{kind.group}/{version.name}" if kind.group else f"/api/{version.name}"
    scope = "/namespaces/{namespace}" if kind.namespaced else ""
    reference = {"$ref": f"#/components/schemas/{schema}"}
    answer = {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}}
    parameters = [
        {"name": name, "in": "query", "schema": _TEXT}
        for name in ("dryRun", "fieldManager", "fieldValidation")
    ]

    def operation(action: str, body: str = "") -> Document:
        found: Document = {
            "responses": answer,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        }
        if body:
            found["parameters"] = parameters
            found["requestBody"] = {"content": {body: {"schema": reference}}}
        return found

    return {
        f"{root}{scope}/{kind.plural}": {
            "get": operation("list"),
            "post": operation("post", "application/json"),
        },
        f"{root}{scope}/{kind.plural}/{{name}}": {
            "get": operation("get"),
            "put": operation("put", "application/json"),
            # Strategic merge is not advertised, so that kubectl takes the merge keys from its own types.
            "patch": operation("patch", "application/merge-patch+json"),
            "delete": operation("delete"),
        },
    }
