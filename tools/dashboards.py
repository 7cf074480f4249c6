"""Writes the Grafana dashboards to deploy/grafana.

Run `python tools/dashboards.py` after changing them here; a test compares the files, and looks whether what
they ask for is what is exported.

A dashboard is a list of rows, a row a list of panels, a panel a title and what it asks Prometheus. All that
Grafana wants to know beyond is the same for each panel of a kind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

TARGET = Path(__file__).parent.parent / "deploy" / "grafana"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
"""Of a row, in Grafana's units."""
HEIGHT = 8


class Ask(NamedTuple):
    """A query and what its lines are called."""

    expression: str
    legend: str = ""


class Panel(NamedTuple):
    """A picture of one or more queries."""

    title: str
    asks: tuple[Ask, ...]
    unit: str = "short"
    """As Grafana names units: pps, percentunit, bytes, s, ..."""
    kind: str = "timeseries"
    """Of Grafana's panels: timeseries, bargauge or stat."""
    about: str = ""


class Dashboard(NamedTuple):
    """A page."""

    name: str
    """Of its file; also what Grafana knows it by."""
    title: str
    instances: str
    """A metric that every node has which the page is about."""
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    """Title and panels of each."""


def rate(metric: str, *by: str, where: str = "") -> str:
    """Per second, summed up by labels."""
    chosen = ",".join(filter(None, (NODE, where)))
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({metric}{{{chosen}}}[$__rate_interval]))"


def now(metric: str) -> str:
    """The numbers as they are."""
    return f"{metric}{{{NODE}}}"


def legend(labels: tuple[str, ...]) -> str:
    """Names lines by their labels."""
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def panel(title: str, *asks: tuple[str, str], unit: str = "short", about: str = "") -> Panel:
    """Lines over time."""
    return Panel(title, tuple(Ask(*ask) for ask in asks), unit, about=about)


def by(title: str, metric: str, *labels: str, unit: str = "pps", where: str = "", about: str = "") -> Panel:
    """What a counter counts per second, a line for each set of labels."""
    return panel(title, (rate(metric, *labels, where=where), legend(labels)), unit=unit, about=about)


def top(title: str, metric: str, *labels: str, unit: str = "pps", where: str = "") -> Panel:
    """The same of now, the largest ten."""
    largest = Ask(f"topk(10, {rate(metric, *labels, where=where)})", legend(labels))
    return Panel(title, (largest,), unit, "bargauge")


def share(title: str, part: str, whole: str) -> Panel:
    """One rate in parts of another."""
    return panel(title, (f"{part} / ({whole} > 0)", "share"), unit="percentunit")


NODE = 'instance=~"$instance"'

FLOW, DROP, TCP = "hubble_flows_processed_total", "hubble_drop_total", "hubble_tcp_flags_total"
VERDICT, WORLD = "hubble_policy_verdicts_total", "hubble_flows_to_world_total"
POLICY_DELAY = "cilium_policy_implementation_delay_bucket"

FLOWS = Dashboard(
    "hubble-flows",
    "Hubble / Flows",
    "hubble_lost_events_total",
    (
        (
            "Flows",
            (
                by("By verdict", FLOW, "verdict"),
                by("By type", FLOW, "type", "subtype"),
                by("By protocol", FLOW, "protocol"),
            ),
        ),
        (
            "Who talks",
            (
                top("Sources", FLOW, "source"),
                top("Destinations", FLOW, "destination"),
                top("Ports", "hubble_port_distribution_total", "protocol", "port"),
            ),
        ),
        (
            "Outside",
            (
                by("Flows to the world", WORLD, "verdict"),
                top("Who talks to the world", WORLD, "source", "port"),
                by("ICMP", "hubble_icmp_total", "family", "type"),
            ),
        ),
        (
            "How complete this is",
            (
                panel(
                    "Events lost",
                    (rate("hubble_lost_events_total", "source"), "{{source}}"),
                    (rate("hubble_metrics_missed_flows_total"), "not counted here"),
                    unit="pps",
                    about="Zero, or the numbers above are too small by this much.",
                ),
                panel(
                    "Series of each metric, of what it may have",
                    (
                        f"{now('hubble_metrics_series')} / ({now('hubble_metrics_series_limit')} > 0)",
                        "{{instance}} {{metric}}",
                    ),
                    unit="percentunit",
                    about="At 100 % new ones are counted together as other.",
                ),
                by("Flows counted as other", "hubble_metrics_overflow_total", "metric"),
            ),
        ),
    ),
)

DROPS = Dashboard(
    "hubble-drops",
    "Hubble / Drops",
    "hubble_lost_events_total",
    (
        (
            "Drops",
            (
                Panel("Drops per second", (Ask(rate(DROP)),), "pps", "stat"),
                by("By reason", DROP, "reason"),
                by("By protocol", DROP, "protocol"),
            ),
        ),
        (
            "Whose",
            (
                top("Sources", DROP, "source"),
                top("Destinations", DROP, "destination"),
                top("Pairs and reasons", DROP, "source", "destination", "reason"),
            ),
        ),
    ),
)

TCP_DNS = Dashboard(
    "hubble-tcp-dns",
    "Hubble / TCP and DNS",
    "hubble_lost_events_total",
    (
        (
            "TCP",
            (
                by("Flags", TCP, "flag", "family"),
                panel(
                    "Connections asked for and answered",
                    (rate(TCP, where='flag="SYN"'), "asked for"),
                    (rate(TCP, where='flag="SYN-ACK"'), "answered"),
                    unit="pps",
                ),
                share(
                    "Resets of connections asked for",
                    rate(TCP, where='flag="RST"'),
                    rate(TCP, where='flag="SYN"'),
                ),
            ),
        ),
        (
            "DNS",
            (
                by("Queries by type", "hubble_dns_queries_total", "qtypes", unit="reqps"),
                by("Answers by code", "hubble_dns_responses_total", "rcode", unit="reqps"),
                top("Names asked for", "hubble_dns_queries_total", "query", unit="reqps"),
            ),
        ),
    ),
)

POLICY = Dashboard(
    "hubble-policy",
    "Hubble / Policy verdicts",
    "hubble_lost_events_total",
    (
        (
            "Verdicts",
            (
                by("By action", VERDICT, "action", "direction"),
                by("By match", VERDICT, "match"),
                share("Denied of all", rate(VERDICT, where='action="dropped"'), rate(VERDICT)),
            ),
        ),
        (
            "Denied",
            (
                top(
                    "Who may not get out",
                    VERDICT,
                    "source",
                    where='action="dropped",direction="egress"',
                ),
                top(
                    "Who may not be reached",
                    VERDICT,
                    "destination",
                    where='action="dropped",direction="ingress"',
                ),
                top("What audit would deny", VERDICT, "source", "destination", where='action="audit"'),
            ),
        ),
    ),
)

AGENT = Dashboard(
    "cilia-agent",
    "Cilia / Agent",
    "cilium_version",
    (
        (
            "Packets",
            (
                by("Forwarded", "cilium_forward_count_total", "direction"),
                by("Forwarded bytes", "cilium_forward_bytes_total", "direction", unit="Bps"),
                by(
                    "Dropped",
                    "cilium_drop_count_total",
                    "reason",
                    about="Counted in the kernel, whether or not events were lost.",
                ),
            ),
        ),
        (
            "Endpoints and policy",
            (
                panel(
                    "Endpoints by state",
                    (f"sum by (endpoint_state) ({now('cilium_endpoint_state')})", "{{endpoint_state}}"),
                ),
                panel(
                    "Policies",
                    (f"max({now('cilium_policy')})", "loaded"),
                    (f"max({now('cilium_policy_refused')})", "refused"),
                    (f"max({now('cilium_policy_warned')})", "warned"),
                ),
                panel(
                    "Policy change to enforcement, 99th percentile",
                    (
                        f"histogram_quantile(0.99, {rate(POLICY_DELAY, 'le')})",
                        "delay",
                    ),
                    unit="s",
                ),
            ),
        ),
        (
            "Kernel",
            (
                panel(
                    "Fullest maps",
                    (f"topk(10, {now('cilium_bpf_map_pressure')})", "{{instance}} {{map_name}}"),
                    unit="percentunit",
                ),
                panel(
                    "Differences between what is meant and what the kernel has",
                    (f"sum by (instance) ({now('cilium_verify_differences')})", "{{instance}}"),
                ),
                panel(
                    "Ports of translations towards the most used peer",
                    (f"max by (family) ({now('cilium_nat_endpoint_max_connection')})", "{{family}}"),
                    unit="percent",
                ),
            ),
        ),
        (
            "The agent",
            (
                by("CPU", "process_cpu_seconds_total", "instance", unit="percentunit"),
                panel("Memory", (now("process_resident_memory_bytes"), "{{instance}}"), unit="bytes"),
                panel(
                    "Flows stored and lost",
                    (rate("cilia_hubble_flows_total"), "stored"),
                    (rate("cilia_hubble_lost_events_total", "source"), "lost: {{source}}"),
                    unit="pps",
                ),
            ),
        ),
    ),
)

DASHBOARDS = (FLOWS, DROPS, TCP_DNS, POLICY, AGENT)


def rendered(dashboard: Dashboard) -> dict[str, Any]:
    """As Grafana 9 and newer import it."""
    panels: list[dict[str, Any]] = []
    top_edge = 0
    for title, row in dashboard.rows:
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top_edge}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []})
        width = WIDTH // len(row)
        for column, each in enumerate(row):
            place = {"h": HEIGHT, "w": width, "x": column * width, "y": top_edge + 1}
            panels.append({"id": len(panels) + 1, "gridPos": place, **picture(each)})
        top_edge += HEIGHT + 1
    return {
        "uid": dashboard.name,
        "title": dashboard.title,
        "tags": ["cilia", "hubble"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [data_source(), instances(dashboard.instances)]},
        "panels": panels,
    }


def picture(each: Panel) -> dict[str, Any]:
    """A panel without its place."""
    bars = each.kind == "bargauge"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": ask.expression,
            "legendFormat": ask.legend,
            "instant": each.kind != "timeseries",
            "range": each.kind == "timeseries",
        }
        for number, ask in enumerate(each.asks)
    ]
    return {
        "type": each.kind,
        "title": each.title,
        "description": each.about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": each.unit, "min": 0}, "overrides": []},
        "options": {"orientation": "horizontal", "displayMode": "gradient"} if bars else {},
    }


def data_source() -> dict[str, Any]:
    """Which Prometheus."""
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def instances(metric: str) -> dict[str, Any]:
    """The nodes to choose from, all by default."""
    query = f"label_values({metric}, instance)"
    return {
        "name": "instance",
        "label": "Node",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "instance"},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "sort": 1,
        "current": {"text": "All", "value": "$__all"},
    }


def text(dashboard: Dashboard) -> str:
    """The file's content."""
    return json.dumps(rendered(dashboard), indent=2) + "\n"


def main() -> None:
    """Write all files."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        (TARGET / f"{dashboard.name}.json").write_text(text(dashboard))


if __name__ == "__main__":
    main()
