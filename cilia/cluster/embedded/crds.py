"""CustomResourceDefinitions: check them, give them their status, and turn them into kinds. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from . import jsonpath
from .errors import FieldError, invalid, required
from .printing import custom_columns
from .registry import Kind, Value, Version
from .schema import check_structure

KEY: Final = "apiextensions.k8s.io/customresourcedefinitions"
_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def complete(value: Value) -> None:
    """Fill in the names that may be left out."""
    names = value["spec"].setdefault("names", {})
    if isinstance(kind := names.get("kind"), str):
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", kind + "List")
    value["spec"].setdefault("conversion", {"strategy": "None"})


def check(value: Value, old: Value | None) -> list[FieldError]:
    """Faults of a definition whose outer shape is already valid."""
    spec = value["spec"]
    faults: list[FieldError] = []
    names, group = spec["names"], spec["group"]
    wanted = f"{names['plural']}.{group}"
    if value["metadata"].get("name") != wanted:
        faults.append(
            invalid(
                "metadata.name",
                value["metadata"].get("name"),
                f'must be spec.names.plural+"."+spec.group: {wanted}',
            )
        )
    if "." not in group:
        faults.append(invalid("spec.group", group, "should be a domain with at least one dot"))
    if not _LABEL.fullmatch(names["plural"]):
        faults.append(invalid("spec.names.plural", names["plural"], "must be a DNS-1035 label"))
    faults += _check_versions(spec["versions"])
    if spec.get("conversion", {}).get("strategy", "None") != "None":
        faults.append(
            invalid("spec.conversion.strategy", spec["conversion"]["strategy"], "only None is served here")
        )
    if old is not None:
        for path in (("group",), ("scope",), ("names", "kind"), ("names", "plural")):
            before, after = old["spec"], spec
            for part in path:
                before, after = before[part], after[part]
            if before != after:
                faults.append(invalid("spec." + ".".join(path), after, "field is immutable"))
    return faults


def _check_versions(versions: list[Value]) -> list[FieldError]:
    faults: list[FieldError] = []
    if sum(version["storage"] for version in versions) != 1:
        faults.append(
            invalid(
                "spec.versions",
                [v["name"] for v in versions],
                "must have exactly one version marked as storage version",
            )
        )
    names = [version["name"] for version in versions]
    if len(set(names)) != len(names):
        faults.append(invalid("spec.versions", names, "must contain unique version names"))
    for at, version in enumerate(versions):
        path = f"spec.versions[{at}]"
        if not _LABEL.fullmatch(version["name"]):
            faults.append(invalid(f"{path}.name", version["name"], "must be a DNS-1035 label"))
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            faults.append(required(f"{path}.schema.openAPIV3Schema", "schemas are required"))
        else:
            faults += check_structure(schema, f"{path}.schema.openAPIV3Schema")
        faults += _check_columns(
            version.get("additionalPrinterColumns") or [], f"{path}.additionalPrinterColumns"
        )
    return faults


def _check_columns(columns: Any, path: str) -> list[FieldError]:
    faults: list[FieldError] = []
    for at, column in enumerate(columns if isinstance(columns, list) else [columns]):
        missing = [
            n
            for n in ("name", "type", "jsonPath")
            if not isinstance(column, dict) or not isinstance(column.get(n), str)
        ]
        if missing:
            faults += [required(f"{path}[{at}].{name}") for name in missing]
            continue
        try:
            jsonpath.compile_path(column["jsonPath"])
        except ValueError as error:
            faults.append(invalid(f"{path}[{at}].jsonPath", column["jsonPath"], str(error)))
    return faults


def status(value: Value, clash: str, now: str) -> Value:
    """The status of a definition; ``clash`` says why its names can't be accepted, if so."""
    spec = value["spec"]
    old = {c["type"]: c for c in (value.get("status") or {}).get("conditions") or ()}

    def condition(kind: str, good: bool, reason: str, message: str) -> Value:
        truth = "True" if good else "False"
        same = kind in old and old[kind]["status"] == truth
        since = old[kind]["lastTransitionTime"] if same else now
        return {
            "type": kind,
            "status": truth,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since,
        }

    stored = next(version["name"] for version in spec["versions"] if version["storage"])
    before = (value.get("status") or {}).get("storedVersions") or []
    ok = not clash
    return {
        "conditions": [
            condition(
                "NamesAccepted", ok, "NoConflicts" if ok else "NamesConflict", clash or "no conflicts found"
            ),
            condition(
                "Established",
                ok,
                "InitialNamesAccepted" if ok else "NotAccepted",
                "the initial names have been accepted" if ok else "not all names are accepted",
            ),
        ],
        "acceptedNames": spec["names"] if ok else {"plural": "", "kind": ""},
        "storedVersions": before if stored in before else [*before, stored],
    }


def established(value: Value) -> bool:
    """Whether the definition's kind is served."""
    conditions = (value.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def clash(value: Value, kinds: list[Kind]) -> str:
    """Why another kind of the group forbids these names; empty if none does."""
    spec = value["spec"]
    names = spec["names"]
    for kind in kinds:
        if kind.group != spec["group"] or kind.plural == names["plural"]:
            continue
        if kind.kind == names["kind"]:
            return f'"{names["kind"]}" is already in use'
        taken = {*kind.short_names, kind.singular} & {*names.get("shortNames", ()), names["singular"]}
        if taken:
            return f'"{min(taken)}" is already in use'
    return ""


def kind_of(value: Value) -> Kind:
    """The kind a definition describes."""
    spec = value["spec"]
    names = spec["names"]
    selectable = {
        field["jsonPath"].lstrip(".")
        for version in spec["versions"]
        for field in version.get("selectableFields") or ()
        if isinstance(field, dict) and isinstance(field.get("jsonPath"), str)
    }
    versions = tuple(_version(version) for version in spec["versions"] if version["served"])
    return Kind(
        group=spec["group"],
        versions=versions,
        storage=next(version["name"] for version in spec["versions"] if version["storage"]),
        plural=names["plural"],
        singular=names["singular"],
        kind=names["kind"],
        list_kind=names["listKind"],
        namespaced=spec["scope"] == "Namespaced",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        subresources=("status",) if any(version.status for version in versions) else (),
        fields=tuple(sorted(selectable)),
        custom=True,
        definition_uid=value["metadata"].get("uid", ""),
    )


def _version(version: Value) -> Version:
    return Version(
        version["name"],
        version["schema"]["openAPIV3Schema"],
        custom_columns(version.get("additionalPrinterColumns") or ()),
        "status" in (version.get("subresources") or {}),
    )
