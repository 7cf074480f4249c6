"""The rules of ``metadata`` that all kinds share. Pure.

Source: the API conventions, "Metadata", and
https://kubernetes.io/docs/concepts/overview/working-with-objects/names/.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .errors import FieldError, invalid, required, show
from .registry import Kind, Value

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KEY: Final = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
# Kinds whose names are DNS labels, because they become part of host names.
_SHORT_NAMES: Final = frozenset({"/namespaces", "/services"})
MAX_ANNOTATIONS: Final = 256 << 10

_KEY_RULE: Final = "a label key is [prefix/]name of at most 63 letters, digits, '-', '_' and '.'"
_VALUE_RULE: Final = (
    "a label value is at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
)
_LABEL_RULE: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "must start and end with an alphanumeric character, and have at most 63 characters"
)
_SUBDOMAIN_RULE: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "must start and end with an alphanumeric character, and have at most 253 characters"
)

_SERVER_OWNED: Final = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
)
_KNOWN: Final[dict[str, type]] = {
    "name": str,
    "generateName": str,
    "namespace": str,
    "uid": str,
    "resourceVersion": str,
    "generation": int,
    "creationTimestamp": str,
    "deletionTimestamp": str,
    "deletionGracePeriodSeconds": int,
    "labels": dict,
    "annotations": dict,
    "ownerReferences": list,
    "finalizers": list,
    "selfLink": str,
    "managedFields": list,
}


def shape(value: Value) -> list[FieldError]:
    """Faults of types in ``metadata``; unknown fields and nulls are removed in place."""
    meta = value.setdefault("metadata", {})
    if not isinstance(meta, dict):
        return [invalid("metadata", meta, "must be an object")]
    for key in [key for key, item in meta.items() if key not in _KNOWN or item is None]:
        del meta[key]
    meta.pop("managedFields", None)
    meta.pop("selfLink", None)
    faults = [
        invalid(f"metadata.{key}", item, f"must be of type {_KNOWN[key].__name__}")
        for key, item in meta.items()
        if not isinstance(item, _KNOWN[key]) or isinstance(item, bool)
    ]
    if faults:
        return faults
    for key in ("labels", "annotations"):
        for name, item in meta.get(key, {}).items():
            if not isinstance(item, str):
                faults.append(invalid(f"metadata.{key}[{name}]", item, "must be a string"))
    for at, item in enumerate(meta.get("finalizers", [])):
        if not isinstance(item, str):
            faults.append(invalid(f"metadata.finalizers[{at}]", item, "must be a string"))
    return faults + _owners(meta.get("ownerReferences", []))


def _owners(owners: list[Any]) -> list[FieldError]:
    faults: list[FieldError] = []
    for at, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{at}]"
        if not isinstance(owner, dict):
            faults.append(invalid(path, owner, "must be an object"))
            continue
        for name in ("apiVersion", "kind", "name", "uid"):
            if not isinstance(owner.get(name), str) or not owner[name]:
                faults.append(required(f"{path}.{name}", "must not be empty"))
    return faults


def check(kind: Kind, value: Value) -> list[FieldError]:
    """Faults of a well-shaped ``metadata``."""
    meta = value["metadata"]
    faults = _check_name(kind, meta.get("name", ""))
    for name, text in meta.get("labels", {}).items():
        if not _is_key(name):
            faults.append(
                invalid(
                    "metadata.labels",
                    name,
                    _KEY_RULE,
                )
            )
        if len(text) > 63 or not _VALUE.fullmatch(text):
            faults.append(
                invalid(
                    "metadata.labels",
                    text,
                    _VALUE_RULE,
                )
            )
    annotations = meta.get("annotations", {})
    for name in annotations:
        if not _is_key(name.lower()):
            faults.append(
                invalid(
                    "metadata.annotations",
                    name,
                    "an annotation key is [prefix/]name of at most 63 characters",
                )
            )
    if sum(len(name) + len(text) for name, text in annotations.items()) > MAX_ANNOTATIONS:
        faults.append(
            FieldError(
                "FieldValueTooLong",
                "metadata.annotations",
                f"Too long: may not be more than {MAX_ANNOTATIONS} bytes",
            )
        )
    return faults


def _is_key(text: str) -> bool:
    # The length first: the pattern takes quadratic time on what does not match.
    return len(text) <= 253 + 1 + 63 and _KEY.fullmatch(text) is not None


def _check_name(kind: Kind, name: str) -> list[FieldError]:
    if not name:
        return [required("metadata.name", "name or generateName is required")]
    if kind.key in _SHORT_NAMES:
        if not _LABEL.fullmatch(name):
            return [
                invalid(
                    "metadata.name",
                    name,
                    _LABEL_RULE,
                )
            ]
    elif len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        return [
            invalid(
                "metadata.name",
                name,
                _SUBDOMAIN_RULE,
            )
        ]
    return []


def keep_server_owned(value: Value, current: Value) -> None:
    """An update can't change what the server wrote."""
    meta, old = value["metadata"], current["metadata"]
    for key in _SERVER_OWNED:
        if key in old:
            meta[key] = old[key]
        else:
            meta.pop(key, None)
    for key in ("name", "namespace"):
        if key in old:
            meta[key] = old[key]
    meta.pop("generateName", None)
    if "generateName" in old:
        meta["generateName"] = old["generateName"]
    meta["resourceVersion"] = old["resourceVersion"]


def check_change(value: Value, current: Value) -> list[FieldError]:
    """Faults of a change: an object that is being deleted takes no new finalizers."""
    held = current["metadata"].get("finalizers") or ()
    added = [name for name in value["metadata"].get("finalizers") or () if name not in held]
    if not added or "deletionTimestamp" not in current["metadata"]:
        return []
    text = f"Forbidden: no new finalizers can be added if the object is being deleted, found {show(added)}"
    return [FieldError("FieldValueForbidden", "metadata.finalizers", text)]


def tidy(value: Value) -> Value:
    """The object with apiVersion, kind and metadata in front; metadata ordered and without empty parts."""
    meta = value["metadata"]
    ordered = {key: meta[key] for key in _KNOWN if key in meta and meta[key] not in ({}, [], "")}
    rest = {key: item for key, item in value.items() if key not in ("apiVersion", "kind", "metadata")}
    return {"apiVersion": value["apiVersion"], "kind": value["kind"], "metadata": ordered, **rest}
