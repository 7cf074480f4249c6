"""Dashboards ask for what is exported, by labels it has with the configuration of the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cilia.apps.agent.metrics import AgentCollector, AgentMetrics, HubbleNumbers, KernelNumbers, PolicyNumbers
from cilia.apps.agent.verifying import Verifying
from cilia.hubble.metrics.options import parse
from cilia.hubble.metrics.processor import FlowMetrics
from cilia.kit.clock import ManualClock
from cilia.schema import Desired, Inputs
from tests.support.hubble import NODE, store
from tools import dashboards

ROOT = Path(__file__).parents[3]
METRIC = re.compile(r"\b(?:hubble|cilium|cilia|process)_[a-z0-9_]+\b")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
MATCHED = re.compile(r"[{,]([a-z_]+)=~?\"")
NAMED = re.compile(r"\{\{(\w+)\}\}")
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
ANYWHERE = {"instance", "le"}
"""Labels that Prometheus adds, and those of histograms."""


def flags() -> str:
    """The value of --hubble-metrics in the documentation."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    found = re.search(r'cilia-agent --hubble-metrics="([^"]*)"', page)
    assert found is not None
    return found[1]


def of_flows() -> dict[str, set[str]]:
    """What Hubble exports, with its labels."""
    made = FlowMetrics(store(), NODE, ManualClock())
    made.configure(parse(flags()))
    found = {}
    for family in made.families:
        for series in family.kind.series:
            for ending in ENDINGS[series.type]:
                found[series.name + ending] = {*series.labels, *family.side_labels}
    for head, names, _ in made.own():
        found[head.name + ENDINGS[head.type][0]] = set(names)
    return found


class Nothing(Verifying):
    """A round of comparisons that found nothing."""

    differences = 0
    by_map: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        """It needs no kernel."""

    def since_difference(self) -> float:
        return 0.0

    def since_check(self) -> float:
        return 0.0


def of_agent() -> dict[str, set[str]]:
    """What the agent exports. Labels are those that its families declare."""
    numbers = HubbleNumbers(lost={"hubble_ring_buffer": 0})
    inputs, desired = Inputs(), Desired()
    collector = AgentCollector(
        inputs,
        desired,
        lambda: KernelNumbers(counters=[(0, 1, 0, 0), (133, 1, 0, 0)]),
        lambda: numbers,
        PolicyNumbers,
    )
    collector.verifying = Nothing()
    metrics = AgentMetrics(collector)
    found = {}
    for family in metrics.registry.collect():
        labels = set(getattr(family, "_labelnames", ()))
        for ending in ENDINGS[family.type]:
            found[family.name + ending] = labels
    found["cilium_policy_implementation_delay_bucket"] = {"source"}
    return found


def expressions(path: Path) -> list[tuple[str, str, str]]:
    """Title, expression and legend of each query of a file."""
    page: dict[str, Any] = json.loads(path.read_text())
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in page["panels"]
        for target in panel.get("targets", ())
    ]


PAGES = sorted((ROOT / "deploy" / "grafana").glob("*.json"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_panels_ask_for_what_there_is(page: Path) -> None:
    exported = of_flows() | of_agent()
    asked = expressions(page)
    assert asked
    for title, expression, legend in asked:
        metrics = METRIC.findall(expression)
        assert metrics, f"{title}: {expression}"
        for metric in metrics:
            assert metric in exported, f"{title} asks for {metric}, which nobody exports"
            known = exported[metric] | ANYWHERE
            grouped = {label.strip() for part in GROUPED.findall(expression) for label in part.split(",")}
            used = grouped | set(MATCHED.findall(expression)) | set(NAMED.findall(legend))
            assert used <= known, f"{title} uses {used - known}, which {metric} does not have"


def test_the_files_are_as_the_program_writes_them() -> None:
    written = {path.name: path.read_text() for path in PAGES}
    assert written == {f"{page.name}.json": dashboards.text(page) for page in dashboards.DASHBOARDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_panels_do_not_overlap(page: Path) -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(page.read_text())["panels"]
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
