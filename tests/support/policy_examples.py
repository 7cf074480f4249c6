"""The examples of the documentation: YAML, and what it says in comments about who reaches whom.

    # allowed: shop/front, tools/probe -> shop/web 8000/TCP 8010/TCP
    # denied: 203.0.113.2 -> shop/web ping
    # audited: shop/guest -> shop/db 5432/TCP
    # refused: spec.ingress[1].toPorts[0].rules

The last names a part that can't be enforced. Ends are pods, addresses, `host` (the node the pods are on) and
`node-2`; every end on the left is about every end and every port on the right.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
LANGUAGE = REPOSITORY / "docs" / "policy-language.md"
PAGES = (REPOSITORY / "docs" / "policy.md", LANGUAGE)
CLUSTER = REPOSITORY / "examples" / "policies" / "cluster.yaml"
"""The pods that the examples are about."""

_BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_REFUSED = re.compile(r"^# refused: (.*)$", re.MULTILINE)
_STATEMENT = re.compile(r"^# (allowed|denied|audited): (.*) -> (.*)$", re.MULTILINE)
_PORT = re.compile(r"^(\d+/(TCP|UDP|SCTP|ip)|ping)$")


class Statement(NamedTuple):
    """One packet and what becomes of it."""

    outcome: str
    """allowed, denied or audited."""
    source: str
    destination: str
    port: str


class Example(NamedTuple):
    """One block of YAML of a page."""

    documents: list[dict[str, Any]]
    statements: list[Statement]
    refused: list[str]
    """Paths of what can't be enforced."""

    @property
    def name(self) -> str:
        """Its first object."""
        first = self.documents[0]
        return f"{first['kind']}-{first['metadata']['name']}"


def blocks() -> list[Example]:
    """Every example, page by page."""
    found = [block for page in PAGES for block in _BLOCK.findall(page.read_text())]
    return [
        Example(list(yaml.safe_load_all(block)), list(_statements(block)), _REFUSED.findall(block))
        for block in found
    ]


def examples() -> list[dict[str, Any]]:
    """Every object of every example that can be enforced as a whole."""
    return [document for block in blocks() if not block.refused for document in block.documents]


def _statements(block: str) -> Iterator[Statement]:
    for outcome, left, right in _STATEMENT.findall(block):
        words = right.split()
        ports = [word for word in words if _PORT.match(word)]
        ends = [word.rstrip(",") for word in words if not _PORT.match(word)]
        assert ports, f"no port in {right!r}"
        for source, end, port in itertools.product(left.split(", "), ends, ports):
            yield Statement(outcome, source.strip(), end, port)
