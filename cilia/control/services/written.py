"""What users write on Services and slices for this load balancer: names and values as Cilium has them."""

from __future__ import annotations

import enum
import ipaddress
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

from cilia.control.services.selectors import read_line
from cilia.control.services.standing import Standing
from cilia.model.service import Algorithm, ForwardingMode, FrontendKind
from cilia.schema import EndpointSliceRow

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
"""A label: who serves this Service, if not the default."""
HEADLESS = "service.kubernetes.io/headless"
"""A label: nobody serves it."""

NODE = "service.cilium.io/node"
NODE_SELECTOR = "service.cilium.io/node-selector"
TYPE = "service.cilium.io/type"
ALGORITHM = "service.cilium.io/lb-algorithm"
MODE = "service.cilium.io/forwarding-mode"
RANGES_POLICY = "service.cilium.io/src-ranges-policy"
WEIGHT = "service.cilium.io/weight"

DEFAULT_WEIGHT = 100
"""Of the backends of slices without the annotation."""
MAX_WEIGHT = 65_535

_TYPES = {
    kind.value: kind for kind in (FrontendKind.CLUSTER_IP, FrontendKind.NODE_PORT, FrontendKind.LOAD_BALANCER)
}

E = TypeVar("E", bound=enum.StrEnum)


def field(name: str) -> str:
    """Where an annotation stands, for sentences."""
    return f"metadata.annotations[{name}]"


def chooses_nodes(annotations: Mapping[str, str]) -> bool:
    """Whether a Service is only for nodes with certain labels."""
    return NODE in annotations or NODE_SELECTOR in annotations


@lru_cache(maxsize=16_384)
def is_prefix(text: str) -> bool:
    """Whether a text is a prefix in its one spelling: no mask of bits, no zone, no IPv4 in disguise."""
    try:
        return "%" not in text and str(ipaddress.ip_network(text)) == text
    except ValueError:
        return False


def is_exposed(annotations: Mapping[str, str], standing: Standing, problems: list[str]) -> bool:
    """Whether a Service is served on this node; the selector comes before the single label."""
    if (text := annotations.get(NODE_SELECTOR)) is not None:
        try:
            return read_line(text).selects(standing.labels)
        except ValueError as error:
            problems.append(f"{field(NODE_SELECTOR)}: {error}; no node serves the Service until then")
            return False
    value = annotations.get(NODE)
    return value is None or standing.labels.get(NODE) == value


def only_kind(annotations: Mapping[str, str], problems: list[str]) -> FrontendKind | None:
    """The one kind of frontends that is wanted, or None: all that the type of the Service has."""
    text = annotations.get(TYPE)
    if text is None or text in _TYPES:
        return _TYPES.get(text or "")
    problems.append(f"{field(TYPE)}: {text!r} is no type: use {', '.join(_TYPES)}")
    return None


def algorithm(annotations: Mapping[str, str], problems: list[str]) -> Algorithm | None:
    """How backends are chosen, if the Service says."""
    return choice(Algorithm, annotations.get(ALGORITHM), field(ALGORITHM), problems)


def mode(annotations: Mapping[str, str], problems: list[str]) -> ForwardingMode | None:
    """How remote backends answer clients from outside, if the Service says."""
    return choice(ForwardingMode, annotations.get(MODE), field(MODE), problems)


def choice(words: type[E], text: str | None, path: str, problems: list[str]) -> E | None:
    """One of a list of words; None when nothing is written, or something else."""
    if not text:
        return None
    try:
        return words(text)
    except ValueError:
        problems.append(f"{path}: {text!r} is none of {', '.join(words)}; the node's default is used")
        return None


def are_sources_denied(annotations: Mapping[str, str], problems: list[str]) -> bool:
    """Whether source ranges keep clients out instead of in."""
    text = annotations.get(RANGES_POLICY, "allow")
    if text not in ("allow", "deny"):
        problems.append(f"{field(RANGES_POLICY)}: {text!r} is neither allow nor deny; allow is used")
    return text == "deny"


def weights(slices: Iterable[EndpointSliceRow], problems: list[str]) -> dict[str, int]:
    """The weight of the backends of each slice by its name, divided by what all have in common; empty when no
    slice says one: all weigh 1."""
    found = {row.name: _weight(row, problems) for row in slices}
    if not any(WEIGHT in row.annotations for row in slices):
        return {}
    common = math.gcd(*found.values()) or 1
    return {name: weight // common for name, weight in found.items()}


def _weight(row: EndpointSliceRow, problems: list[str]) -> int:
    text = row.annotations.get(WEIGHT)
    if text is None:
        return DEFAULT_WEIGHT
    if text.isascii() and text.isdecimal() and int(text) <= MAX_WEIGHT:
        return int(text)
    problems.append(
        f"EndpointSlice {row.name}: {field(WEIGHT)}: {text!r} is no number from 0 to {MAX_WEIGHT}; "
        f"{DEFAULT_WEIGHT} is used"
    )
    return DEFAULT_WEIGHT
