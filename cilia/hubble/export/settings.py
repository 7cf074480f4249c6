"""What an exporter is told: by flags, or by an entry of the file of flow logs.

The file is YAML as Cilium's users have it:

    flowLogs:
    - name: drops                    # of the exporter; each its own
      filePath: /var/log/drops.log   # each its own; or stdout
      includeFilters: [{verdict: [DROPPED]}]
      excludeFilters: [{source_pod: [kube-system/]}]
      fieldMask: [time, source, destination, verdict]
      fieldAggregate: [source.namespace, destination.namespace]
      aggregationInterval: 30s
      fileMaxSizeMb: 10
      fileMaxBackups: 5
      fileCompress: true
      end: 2026-12-24T18:00:00Z

Field names are those of Cilium's documentation on the Hubble exporter.
"""

from __future__ import annotations

import datetime
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from cilia.hubble.export import field_trees
from cilia.kit.documents import DocumentError, cut, read_yaml
from cilia.kit.durations import parse_duration
from cilia.proto.flow import flow_pb2

STDOUT = "stdout"
STATIC = "static"
"""Name of the exporter that flags describe."""
MAX_SIZE_MB = 10
MAX_BACKUPS = 5
LONGEST_FILE = 1 << 20
"""Bytes of settings: more than thousands of exporters need."""
LONGEST_REASON = 300
"""Characters of the protobuf library's reason, which repeats values as long as they are."""


class ExportError(ValueError):
    """Settings that can't be followed; its text is a sentence for the operator."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """One exporter."""

    name: str = STATIC
    path: str
    """File to write to, or `stdout`."""
    max_size_mb: int = MAX_SIZE_MB
    """MiB after which a file is set aside and a new one begun."""
    max_backups: int = MAX_BACKUPS
    """Files set aside that are kept; 0: all."""
    compress: bool = False
    """Compress files that were set aside (gzip)."""
    include: tuple[str, ...] = ()
    """flow.FlowFilter as JSON: flows that at least one matches; none given: all."""
    exclude: tuple[str, ...] = ()
    """Of these, leave out what one of these matches."""
    mask: tuple[str, ...] = ()
    """Paths of the fields of a flow that are wanted; none given: all."""
    aggregate: tuple[str, ...] = ()
    """Paths of the fields that make a group: one line tells of all flows of an interval that agree in them;
    none given: a line for each flow."""
    interval: float = 0.0
    """Seconds over which flows of a group are counted."""
    end: float | None = None
    """Moment (seconds since the epoch) when the exporter ends; None: never."""

    @property
    def place(self) -> str:
        """The path in one spelling."""
        return "/" + posixpath.normpath(self.path).lstrip("/")

    def check(self) -> None:
        """Raise ExportError when a value can't be followed."""
        try:
            for paths in (self.mask, self.aggregate):
                field_trees.parse(paths)
        except field_trees.MaskError as error:
            raise ExportError(str(error)) from None
        if self.path != STDOUT and not self.path.startswith("/"):
            raise ExportError(f"the file {cut(self.path)!r} must be a path from the root, or stdout")
        if not self.path.isprintable():
            raise ExportError(
                f"the file {cut(self.path)!r} has characters that can't be printed: name another"
            )
        if self.max_size_mb < 1 or self.max_backups < 0:
            raise ExportError(
                "files must hold at least 1 MiB each, and the number of backups can't be negative"
            )
        if self.aggregate and self.interval <= 0:
            raise ExportError("flows that are grouped need an aggregation interval such as 30s")


def read_file(content: bytes | str) -> dict[str, ExportSettings]:
    """The exporters of a file of flow logs, by name. Raises ExportError."""
    if len(content) > LONGEST_FILE:
        raise ExportError(f"it has more than {LONGEST_FILE >> 20} MiB: write fewer exporters")
    try:
        document = read_yaml(content)
    except DocumentError as error:
        raise ExportError(str(error)) from None
    entries = (document or {}).get("flowLogs") if isinstance(document or {}, dict) else None
    if document and not isinstance(entries, list | None):
        raise ExportError("flowLogs must be a list")
    if document and (not isinstance(document, dict) or set(document) - {"flowLogs"}):
        raise ExportError("it must have one key, flowLogs, with a list")
    found: dict[str, ExportSettings] = {}
    for number, entry in enumerate(entries or []):
        where = f"flowLogs[{number}]"
        if not isinstance(entry, dict):
            raise ExportError(f"{where} is not a mapping")
        try:
            settings = read_entry(entry)
            settings.check()
        except ExportError as error:
            raise ExportError(f"{where}: {error}") from None
        if settings.name in found or settings.name == STATIC:
            raise ExportError(f"{where}: the name {settings.name!r} is taken: each exporter needs its own")
        if settings.place in {each.place for each in found.values()}:
            raise ExportError(
                f"{where}: {settings.path} is written by another exporter: give each its own file"
            )
        found[settings.name] = settings
    return found


def read_entry(entry: Mapping[str, Any]) -> ExportSettings:
    """One entry of `flowLogs`. Raises ExportError."""
    unknown = set(entry) - KEYS
    if unknown:
        raise ExportError(
            f"unknown key {cut(sorted(map(str, unknown))[0])!r}: use one of {', '.join(sorted(KEYS))}"
        )
    for key in ("name", "filePath"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ExportError(f"{key} is required")
    return ExportSettings(
        name=entry["name"],
        path=entry["filePath"],
        max_size_mb=_number(entry, "fileMaxSizeMb") or MAX_SIZE_MB,
        max_backups=_number(entry, "fileMaxBackups") or MAX_BACKUPS,
        compress=_flag(entry, "fileCompress"),
        include=tuple(filter_text(each) for each in _list(entry, "includeFilters")),
        exclude=tuple(filter_text(each) for each in _list(entry, "excludeFilters")),
        mask=_texts(entry, "fieldMask"),
        aggregate=_texts(entry, "fieldAggregate"),
        interval=interval(cut(str(entry.get("aggregationInterval") or 0))),
        end=_moment(entry.get("end")),
    )


KEYS = frozenset(
    """
    name filePath fieldMask fieldAggregate aggregationInterval includeFilters excludeFilters fileMaxSizeMb
    fileMaxBackups fileCompress end
    """.split()  # noqa: SIM905
)


def filters(text: str) -> tuple[str, ...]:
    """Filters as a flag has them: JSON objects one after the other, or a list of them. Raises ExportError."""
    decoder, found, place = json.JSONDecoder(), [], 0
    text = text.strip()
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except ValueError as error:
            raise ExportError(f"{text[place : place + 40]!r} is not a filter in JSON: {error}") from None
        found += [filter_text(each) for each in (value if isinstance(value, list) else [value])]
        place = re.compile(r"[\s,]*").match(text, end).end()  # type: ignore[union-attr]
    return tuple(found)


def filter_text(value: object) -> str:
    """A filter in one spelling. Raises ExportError."""
    if not isinstance(value, dict):
        raise ExportError(f"{cut(repr(value))} is not a filter: write a mapping such as verdict: [DROPPED]")
    try:
        message = json_format.ParseDict(value, flow_pb2.FlowFilter())
    except json_format.ParseError as error:
        text, why = json.dumps(value, default=str), str(error).splitlines()[0]
        raise ExportError(f"{cut(text)} is not a filter: {cut(why, LONGEST_REASON)}") from None
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None, sort_keys=True)


def filter_message(text: str) -> flow_pb2.FlowFilter:
    """What `filter_text` made, as a message."""
    return json_format.Parse(text, flow_pb2.FlowFilter())


def interval(text: str) -> float:
    """Seconds of a length of time such as `30s`. Raises ExportError."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ExportError(str(error)) from None


def _moment(value: object) -> float | None:
    """Seconds since the epoch of an RFC 3339 time, which YAML may have read already."""
    if value is None or value == "":
        return None
    try:
        moment = (
            value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(str(value))
        )
    except ValueError:
        raise ExportError(f"end {cut(repr(value))} is not a time: write 2026-12-24T18:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _number(entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key) or 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ExportError(f"{key} must be a number that is not negative")
    return value


def _flag(entry: Mapping[str, Any], key: str) -> bool:
    value = entry.get(key) or False
    if not isinstance(value, bool):
        raise ExportError(f"{key} must be true or false")
    return value


def _list(entry: Mapping[str, Any], key: str) -> list[Any]:
    value = entry.get(key) or []
    if not isinstance(value, list):
        raise ExportError(f"{key} must be a list")
    return value


def _texts(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _list(entry, key)
    if not all(isinstance(value, str) for value in values):
        raise ExportError(f"{key} must be a list of paths such as source.pod_name")
    return tuple(values)
