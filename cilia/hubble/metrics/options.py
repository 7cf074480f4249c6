"""Which metrics are wanted: the text of --hubble-metrics, or the YAML of the dynamic configuration.

    drop:sourceContext=pod|reserved-identity;labelsContext=source_namespace flows-to-world:any-drop;port

Metrics are separated by blanks (or commas before a metric's name), options by semicolons, values by `|` (of
labelsContext by commas). The YAML has the same in fields:

    metrics:
    - name: drop
      contextOptions:
      - {name: sourceContext, values: [pod, reserved-identity]}
      includeFilters: [{source_pod: ["shop/"]}]
      excludeFilters: []

Source: the pages on Hubble's metrics and on their dynamic configuration in Cilium's documentation.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from google.protobuf import json_format

from cilia.kit.documents import DocumentError, cut, read_yaml
from cilia.proto.flow import flow_pb2

METRICS = (
    "dns", "drop", "flow", "flows-to-world", "http", "httpV2", "icmp", "kafka", "policy", "port-distribution",
    "tcp",
)  # fmt: skip

SIDES = ("source", "destination")

IDENTIFIERS = (
    "identity", "namespace", "pod", "pod-name", "dns", "ip", "reserved-identity", "workload", "workload-name",
    "app",
)  # fmt: skip
"""What a source or destination may be called by."""

SIDE_LABELS = ("ip", "pod", "namespace", "workload", "workload_kind", "app")
LABELS = (*(f"{side}_{name}" for side in SIDES for name in SIDE_LABELS), "traffic_direction")
"""What labelsContext may list, in the order in which series carry them."""

CONTEXTS = tuple(f"{side}{way}Context" for side in SIDES for way in ("", "Egress", "Ingress"))

SWITCHES = {
    "dns": ("query", "ignoreAAAA"),
    "flows-to-world": ("any-drop", "port", "syn-only"),
    "httpV2": ("exemplars",),
}
"""Options of single metrics; those of contexts are everybody's."""

FILTERS_LIMIT = 64
"""Filters in one list."""
LONGEST_REASON = 300
"""Characters of the protobuf library's reason, which repeats values as long as they are."""

BEFORE_A_NAME = re.compile(rf"[\s,]+(?=(?:{'|'.join(METRICS)})(?:[:\s,]|$))")


class MetricsError(ValueError):
    """A configuration that can't be used; its text is a sentence for the user."""


class Filters(msgspec.Struct, frozen=True):
    """FlowFilter messages as bytes, so that two configurations compare."""

    include: tuple[bytes, ...] = ()
    exclude: tuple[bytes, ...] = ()

    def messages(self) -> tuple[list[flow_pb2.FlowFilter], list[flow_pb2.FlowFilter]]:
        """Whitelist and blacklist."""
        include, exclude = (
            [flow_pb2.FlowFilter.FromString(data) for data in part] for part in (self.include, self.exclude)
        )
        return include, exclude


class MetricOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What of a metric decides over its labels and what it counts."""

    name: str
    contexts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Names out of CONTEXTS with identifiers to try in turn, sorted."""
    labels: tuple[str, ...] = ()
    """Out of LABELS, in their order."""
    switches: frozenset[str] = frozenset()

    def context(self, name: str) -> tuple[str, ...]:
        """The identifiers of a context; empty when it is not set."""
        return dict(self.contexts).get(name, ())


class MetricConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One metric and the flows it is about."""

    options: MetricOptions
    filters: Filters = Filters()


def parse(text: str) -> tuple[MetricConfig, ...]:
    """Read the text of --hubble-metrics. Raises MetricsError."""
    found = []
    for part in BEFORE_A_NAME.split(f" {text.strip()}"):
        name, _, options = part.strip(" \t\n,").partition(":")
        if not name:
            continue
        pairs = [option.partition("=")[::2] for option in options.split(";") if option]
        found.append(MetricConfig(options=read(name, [(key, split(key, value)) for key, value in pairs])))
    return checked(found)


def split(key: str, values: str) -> list[str]:
    """The values of an option as one writes them on the command line."""
    separator = "," if key.lower() == "labelscontext" else "|"
    return [value.strip() for value in values.split(separator) if value.strip()]


def read(name: str, options: list[tuple[str, list[str]]]) -> MetricOptions:
    """Understand the options of one metric. Raises MetricsError."""
    if name not in METRICS:
        raise MetricsError(f"there is no metric {name!r}: use {', '.join(METRICS)}")
    contexts: dict[str, tuple[str, ...]] = {}
    labels: tuple[str, ...] = ()
    switches: set[str] = set()
    known = {word.lower(): word for word in (*CONTEXTS, "labelsContext", *SWITCHES.get(name, ()))}
    for key, values in options:
        option = known.get(key.lower())
        if option is None:
            raise MetricsError(f"the metric {name} has no option {key!r}: use {', '.join(known.values())}")
        if option in CONTEXTS:
            contexts[option] = members(option, values, IDENTIFIERS)
        elif option == "labelsContext":
            wanted = members(option, values, LABELS)
            labels = tuple(label for label in LABELS if label in wanted)
        elif values != ["false"]:
            switches.add(option)
    return MetricOptions(
        name=name,
        contexts=tuple(sorted(contexts.items())),
        labels=labels,
        switches=frozenset(switches),
    )


def members(option: str, values: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The values of an option that takes some of a known set. Raises MetricsError."""
    lowered = tuple(value.lower() for value in values)
    wrong = [value for value in lowered if value not in known]
    if wrong or not lowered:
        said = repr(wrong[0]) if wrong else "nothing"
        raise MetricsError(f"the option {option} takes {', '.join(known)}; it was given {said}")
    return tuple(dict.fromkeys(lowered))


def checked(configs: list[MetricConfig]) -> tuple[MetricConfig, ...]:
    """What may stand together. Raises MetricsError."""
    names = [config.options.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise MetricsError(f"the metric {name} is there twice: keep one")
    if {"http", "httpV2"} <= set(names):
        raise MetricsError("http and httpV2 have the same series: keep httpV2")
    return tuple(configs)


class ContextOption(msgspec.Struct, frozen=True):
    """An option as the YAML has it."""

    name: str
    values: tuple[str, ...] = ()


class MetricEntry(msgspec.Struct, frozen=True, rename="camel"):
    """A metric as the YAML has it."""

    name: str = ""
    context_options: tuple[ContextOption, ...] = ()
    include_filters: tuple[dict[str, Any], ...] = ()
    exclude_filters: tuple[dict[str, Any], ...] = ()


class MetricsFile(msgspec.Struct, frozen=True):
    """The YAML file."""

    metrics: tuple[MetricEntry, ...] = ()


def parse_yaml(content: bytes) -> tuple[MetricConfig, ...]:
    """Read the dynamic configuration. Raises MetricsError."""
    try:
        fields = read_yaml(content)
        entries = msgspec.convert(fields if fields is not None else {}, MetricsFile).metrics
    except DocumentError as error:
        raise MetricsError(str(error)) from error
    except msgspec.ValidationError as error:
        raise MetricsError(f"it is no list of metrics: {error}") from error
    return checked([of_entry(entry) for entry in entries])


def of_entry(entry: MetricEntry) -> MetricConfig:
    """Understand one metric of the YAML. Raises MetricsError."""
    options = [(option.name, list(option.values)) for option in entry.context_options]
    # One who copies from the command line writes "a,b" or "a|b" as one value.
    options = [(key, [part for value in values for part in split(key, value)]) for key, values in options]
    return MetricConfig(
        options=read(entry.name, options),
        filters=Filters(
            filters(entry.name, entry.include_filters), filters(entry.name, entry.exclude_filters)
        ),
    )


def filters(name: str, values: tuple[dict[str, Any], ...]) -> tuple[bytes, ...]:
    """Flow filters as protobuf's JSON has them. Raises MetricsError."""
    if len(values) > FILTERS_LIMIT:
        raise MetricsError(f"the metric {name} has more than {FILTERS_LIMIT} filters in a list: join some")
    found = []
    for value in values:
        try:
            message = json_format.ParseDict(value, flow_pb2.FlowFilter())
        except (json_format.ParseError, RecursionError) as error:
            reason = cut(str(error), LONGEST_REASON)
            raise MetricsError(f"a filter of the metric {name} can't be read: {reason}") from error
        found.append(message.SerializeToString(deterministic=True))
    return tuple(found)
