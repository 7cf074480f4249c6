"""Strategic merge patch for the built-in kinds, as client-side ``kubectl apply`` sends it. Pure.

Lists named in :data:`MERGE_KEYS` are merged by their key, other lists are replaced. Understood directives:
``$patch: delete|replace|merge`` (in a map or a list item), ``$deleteFromPrimitiveList/x``,
``$setElementOrder/x`` and ``$retainKeys``. Source: "Strategic Merge Patch" beside the API conventions
(https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md);
the keys are the ``patchMergeKey`` tags of the API reference.
"""

from __future__ import annotations

from typing import Any, Final

from .errors import ApiError

MERGE_KEYS: Final[dict[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "conditions": "type",
    "addresses": "type",
    "podIPs": "ip",
    "hostIPs": "ip",
    "ownerReferences": "uid",
    "secrets": "name",
    "schedulingGates": "name",
}
# ``ports`` means different things in different kinds.
_PORT_KEYS: Final = {"Service": "port", "Pod": "containerPort"}
_SETS: Final = frozenset({"finalizers", "podCIDRs"})
# Lists that share a name with a merged one but are replaced whole in this kind.
_ATOMIC: Final = {
    "EndpointSlice": frozenset({"addresses", "ports", "conditions"}),
    "ServiceAccount": frozenset({"imagePullSecrets"}),
}

_DELETE_FROM: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"


def strategic_merge(kind: str, target: Any, patch: Any) -> Any:
    """Apply ``patch`` to ``target``, an object of ``kind``; raises a 400 for a malformed directive."""
    if not isinstance(patch, dict):
        raise ApiError(400, "a strategic merge patch must be an object")
    return _merge_map(kind, target if isinstance(target, dict) else {}, patch)


def _merge_map(kind: str, target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise ApiError(400, f"unknown $patch directive {str(directive)[:40]!r}")
    result = dict(target)
    if isinstance(retained := patch.get("$retainKeys"), list):
        result = {key: value for key, value in result.items() if key in retained}
    for key, value in patch.items():
        if key.startswith(_DELETE_FROM):
            _delete_primitives(result, key.removeprefix(_DELETE_FROM), value)
        elif not key.startswith("$"):
            _merge_field(kind, result, key, value)
    for key, value in patch.items():
        if key.startswith(_ORDER):
            _set_order(kind, result, key.removeprefix(_ORDER), value)
    return result


def _merge_field(kind: str, result: dict[str, Any], key: str, value: Any) -> None:
    current = result.get(key)
    if value is None:
        result.pop(key, None)
    elif isinstance(value, dict):
        result[key] = _merge_map(kind, current if isinstance(current, dict) else {}, value)
    elif isinstance(value, list):
        result[key] = _merge_list(kind, key, current if isinstance(current, list) else [], value)
    else:
        result[key] = value


def merge_key(kind: str, name: str) -> str | None:
    """The key by which the list ``name`` of ``kind`` merges; None if it is replaced."""
    if name in _ATOMIC.get(kind, ()):
        return None
    if name == "ports":
        return _PORT_KEYS.get(kind)
    return MERGE_KEYS.get(name)


def _merge_list(kind: str, name: str, current: list[Any], patch: list[Any]) -> list[Any]:
    if name in _SETS and all(isinstance(item, str) for item in patch):
        return current + [item for item in patch if item not in current]
    key = merge_key(kind, name)
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and item.get("$patch") == "replace")]
    if key is None:
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    result = list(current)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise ApiError(400, f"an item of {name} in a strategic merge patch needs its merge key {key!r}")
        _merge_item(kind, result, key, item)
    return result


def _merge_item(kind: str, result: list[Any], key: str, item: dict[str, Any]) -> None:
    at = next(
        (i for i, old in enumerate(result) if isinstance(old, dict) and old.get(key) == item[key]), None
    )
    if item.get("$patch") == "delete":
        if at is not None:
            del result[at]
    elif at is None:
        result.append(_merge_map(kind, {}, item))
    else:
        result[at] = _merge_map(kind, result[at], item)


def _delete_primitives(result: dict[str, Any], name: str, values: Any) -> None:
    current = result.get(name)
    if isinstance(current, list) and isinstance(values, list):
        result[name] = [item for item in current if item not in values]


def _set_order(kind: str, result: dict[str, Any], name: str, order: Any) -> None:
    """Put the items the patch knows into its order; the others keep theirs, behind."""
    current = result.get(name)
    if not isinstance(current, list) or not isinstance(order, list):
        return
    key = merge_key(kind, name)
    wanted = [item.get(key) if isinstance(item, dict) else item for item in order]

    def place(item: Any) -> int:
        own = item.get(key) if isinstance(item, dict) else item
        return wanted.index(own) if own in wanted else len(wanted)

    result[name] = sorted(current, key=place)
