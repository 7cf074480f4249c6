"""A directory of YAML and JSON files as Kubernetes objects: scanning, parsing, what is wrong where.

Nothing of an earlier parse survives: the objects of a file are what it says now, or, while it can't be
parsed, none. Only the moment of reading is buffered: a file that is being written is read when it rests.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cilia.cluster.store import (
    CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
    CILIUM_NETWORK_POLICIES,
    CLUSTER_NETWORK_POLICIES,
    NETWORK_POLICIES,
    RESOURCES,
    Resource,
)
from cilia.kit.documents import check_depth, weigh, yaml_loader
from cilia.kit.files import Stamp
from cilia.model.resources.base import AnyObject

Fields = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty for kinds without) and name."""

SUFFIXES = (".yaml", ".yml", ".json")
MAX_BYTES = 16 << 20

PROVENANCE = "directory:filename"
"""Label of policies that tells from which file they come, as Cilium's static policies carry it."""

_POLICIES = frozenset(
    {
        NETWORK_POLICIES,
        CILIUM_NETWORK_POLICIES,
        CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
        CLUSTER_NETWORK_POLICIES,
    }
)
_KINDS = {
    (msgspec.structs.replace(resource, version=version).api_version, resource.kind): resource
    for resource in RESOURCES
    for version in (resource.version, *resource.also)
}


LONGEST_COPIES = 4 << 20
"""Characters that aliases may add to what a document says: a few lines can stand for gigabytes."""


class _Loader(yaml_loader()):  # type: ignore[misc]
    """YAML as PyYAML reads it, but a key given twice is an error: half of what was meant would be lost. So
    are aliases that multiply."""

    def construct_document(self, node: Any) -> Any:
        meant, written = weigh(node, _characters)
        if meant > written + LONGEST_COPIES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases stand for {meant} characters: write out what is meant"
            )
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value if isinstance(key.value, str) else id(key))
            if name in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"line {line}: {key.value} is given twice"
                )
            seen.add(name)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def _characters(node: Any) -> int:
    return 1 if isinstance(node.value, list) else 1 + len(node.value)


class Problem(msgspec.Struct, frozen=True):
    """Why a file, or one of its documents, counts for nothing."""

    path: str
    sentence: str
    unknown: str = ""
    """apiVersion and kind of an object whose kind is not known here, such as `apps/v1 Deployment`."""


class UnknownKind(ValueError):
    """An object of a kind that is not known here."""

    def __init__(self, version: str, kind: str) -> None:
        super().__init__(f"kind {kind} of apiVersion {version} is not known here")
        self.name = f"{version} {kind}"


class Manifest(msgspec.Struct, frozen=True):
    """One object a file holds."""

    resource: Resource
    key: Key
    fields: Fields


class _File(msgspec.Struct):
    stamp: Stamp
    manifests: list[Manifest]
    problems: list[Problem]


class Manifests:
    """The files below a directory. Call `scan` now and then; it reads only what changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, _File] = {}
        self._moving: dict[str, Stamp] = {}
        self._absent: set[str] = set()

    def scan(self, *, settled: bool = True) -> bool:
        """Look at the directory; returns whether anything changed. Raises OSError when it can't be read.

        With `settled`, a file is read, or forgotten, at the first scan that finds it as the scan before
        did: editors write in several steps, and some take the old file away first.
        """
        present: dict[str, Stamp] = {}
        _collect(str(self.directory), present)
        absent = {path for path in self._files if path not in present}
        gone = absent & self._absent if settled else absent
        for path in gone:
            del self._files[path]
        self._absent = absent - gone
        fresh = {path: stamp for path, stamp in present.items() if self._is_new(path, stamp)}
        resting = {
            path: stamp for path, stamp in fresh.items() if not settled or self._moving.get(path) == stamp
        }
        for path, stamp in resting.items():
            self._files[path] = _read(Path(path), stamp)
            _mark_provenance(self._files[path].manifests, os.path.relpath(path, self.directory))
        self._moving = {path: stamp for path, stamp in fresh.items() if path not in resting}
        return bool(gone or resting)

    def _is_new(self, path: str, stamp: Stamp) -> bool:
        known = self._files.get(path)
        return known is None or known.stamp != stamp

    def objects(self) -> tuple[dict[Resource, dict[Key, Fields]], list[Problem]]:
        """Return all objects and all problems. Of two objects of one name the first file's counts."""
        found: dict[Resource, dict[Key, Fields]] = {}
        problems: list[Problem] = []
        for path in sorted(self._files):
            file = self._files[path]
            problems += file.problems
            for manifest in file.manifests:
                kind = found.setdefault(manifest.resource, {})
                if manifest.key in kind:
                    name = "/".join(part for part in manifest.key if part)
                    sentence = f"{manifest.resource.kind} {name} is defined twice; this one is ignored"
                    problems.append(Problem(path, sentence))
                else:
                    kind[manifest.key] = manifest.fields
        return found, problems


def _mark_provenance(manifests: list[Manifest], path: str) -> None:
    for manifest in manifests:
        if manifest.resource in _POLICIES:
            metadata = manifest.fields["metadata"]
            metadata["labels"] = (metadata.get("labels") or {}) | {PROVENANCE: path}


def _collect(directory: str, found: dict[str, Stamp]) -> None:
    """Note the files that count; hidden ones are editors' and mounted volumes' scaffolding.

    Paths are text, because a scan repeats several times a second for ever.
    """
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    _collect(entry.path, found)
                elif entry.name.endswith(SUFFIXES):
                    found[entry.path] = Stamp.of(entry.stat())
            except FileNotFoundError:
                continue


def _read(path: Path, stamp: Stamp) -> _File:
    try:
        if stamp.size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        return _File(stamp, [], [_unreadable(str(path), error)])
    return _File(stamp, *parse(str(path), content))


def parse(name: str, content: bytes) -> tuple[list[Manifest], list[Problem]]:
    """The objects of a file's content, YAML or (by its name) JSON, and what is wrong with it."""
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    try:
        documents = list(_documents(content, json=name.endswith(".json")))
    # Tags that contradict their values (`!!bool x`) raise whatever the library comes across.
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
        yaml.YAMLError,
        msgspec.DecodeError,
    ) as error:
        return [], [_unreadable(name, error)]
    for number, document in enumerate(documents, 1):
        try:
            manifests += _manifests(document)
        except (ValueError, TypeError, RecursionError) as error:
            unknown = error.name if isinstance(error, UnknownKind) else ""
            problems.append(Problem(name, f"document {number} is ignored: {error}", unknown))
    return manifests, problems


def _unreadable(name: str, error: Exception) -> Problem:
    return Problem(name, f"can't be read, none of its objects count: {' '.join(str(error).split())}")


def _documents(content: bytes, *, json: bool) -> Iterator[Any]:
    if json:
        yield msgspec.json.decode(content)
        return
    check_depth(content)
    for document in yaml.load_all(content.decode(), Loader=_Loader):
        if document is not None:
            yield document


def _manifests(document: Any) -> Iterator[Manifest]:
    """Return the objects of a document: itself, or the items of a List."""
    if not isinstance(document, dict):
        raise ValueError("it is not an object with apiVersion and kind")
    if document.get("apiVersion") == "v1" and document.get("kind") == "List":
        for item in document.get("items") or ():
            yield from _manifests(item)
        return
    version, kind = str(document.get("apiVersion")), str(document.get("kind"))
    resource = _KINDS.get((version, kind))
    if resource is None:
        raise UnknownKind(version, kind)
    # A round through JSON leaves what an API server could have sent: text keys, no dates, no sharing.
    fields: Fields = msgspec.json.decode(msgspec.json.encode(document))
    metadata = msgspec.convert(fields, AnyObject).metadata
    if not metadata.name:
        raise ValueError(f"{resource.kind} has no metadata.name")
    namespace = (metadata.namespace or "default") if resource.namespaced else ""
    fields["metadata"].pop("namespace", None)
    yield Manifest(resource, (namespace, metadata.name), fields)
