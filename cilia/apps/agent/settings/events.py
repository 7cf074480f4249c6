"""What the data path says of packets, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from typer import BadParameter, Option

from cilia.kit.flags import period

AGGREGATION: Mapping[str, str] = {
    **dict.fromkeys(("none", "disabled", "0"), "none"),
    **dict.fromkeys(("low", "lowest", "1", "2"), "low"),
    **dict.fromkeys(("medium", "max", "maximum", "3", "4"), "medium"),
}
"""What is understood, Cilium's words and numbers, and what it means."""
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
"""From the lowest bit on (RFC 9293, section 3.1)."""
MONITOR_EVENTS = (
    *("drop", "debug", "capture", "trace", "policy-verdict", "recorder", "trace-sock", "l7", "agent"),
)
"""What monitors of Cilium tell apart. Of debug, capture, recorder and l7 there are none here."""
MOST_EVENTS = 1_000_000
"""Of a limit: more a second than the data path has packets to tell of."""


def aggregation(text: str) -> str:
    """A level."""
    found = AGGREGATION.get(text.strip().lower())
    if found is None:
        raise BadParameter("must be none, low or medium")
    return found


def monitor_events(text: str) -> str:
    """Names with commas or blanks, once each; empty: all."""
    names = text.lower().replace(",", " ").split()
    if not set(names) <= set(MONITOR_EVENTS):
        raise BadParameter(f"must be names with commas, of {', '.join(MONITOR_EVENTS)}")
    return ",".join(dict.fromkeys(names))


def events_limit(text: str | int) -> int:
    """A number of events; 0: no limit."""
    words = str(text).strip()
    if not words.isdecimal() or int(words) > MOST_EVENTS:
        raise BadParameter(f"must be a number of events up to {MOST_EVENTS}; 0: no limit")
    return int(words)


def interval(text: str | int) -> int:
    """Whole seconds, at least one: that fine is the data path's clock."""
    return max(1, round(period(text)))


def tcp_flags(text: str) -> str:
    """Names with commas."""
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not set(names) <= set(TCP_FLAGS):
        raise BadParameter(f"must be names with commas, of {', '.join(TCP_FLAGS)}")
    return ",".join(names)


@dataclass(frozen=True, kw_only=True)
class EventSettings:
    """What the data path says of packets, and how much of it."""

    events: Annotated[bool, Option(help="Report flows to Hubble.")] = True
    bpf_events_drop_enabled: Annotated[
        bool, Option(help="Report dropped packets, and sockets that are refused.")
    ] = True
    bpf_events_trace_enabled: Annotated[bool, Option(help="Report forwarded packets.")] = True
    bpf_events_policy_verdict_enabled: Annotated[
        bool, Option(help="Report new flows that policy allows, and what only audit lets pass.")
    ] = True
    bpf_events_default_rate_limit: Annotated[
        int,
        Option(
            parser=events_limit,
            help="Events per second at most: of drops and audits, and as many of all others. 0: no limit.",
        ),
    ] = 0
    bpf_events_default_burst_limit: Annotated[
        int, Option(parser=events_limit, help="At once, after a pause. Goes with the limit per second.")
    ] = 0
    aggregation: Annotated[
        str,
        Option(
            "--aggregation",
            "--monitor-aggregation",
            parser=aggregation,
            help="none: every packet; low: without what sockets receive; medium: new flows, closes, new TCP "
            "flags and one report per interval.",
        ),
    ] = "medium"
    report_interval: Annotated[
        int,
        Option(
            "--report-interval",
            "--monitor-aggregation-interval",
            parser=interval,
            show_default="5s",
            help="Between two reports of one established flow.",
        ),
    ] = 5
    """Seconds."""
    monitor_aggregation_flags: Annotated[
        str, Option(parser=tcp_flags, help="TCP flags whose first sight in a flow is reported.")
    ] = "syn,fin,rst"
    trace_sock: Annotated[
        bool,
        Option(
            help="Report each translation of a socket as an event of its own; flows name their Services "
            "anyway."
        ),
    ] = False

    hubble_monitor_events: Annotated[
        str,
        Option(
            parser=monitor_events,
            help="Report only these kinds of events, with commas, of drop, trace, policy-verdict, trace-sock "
            "and agent. Empty: as the flags above say.",
        ),
    ] = ""

    @property
    def watched(self) -> dict[str, Any]:
        """The switches above as `hubble_monitor_events` sets them; none where it says nothing."""
        kinds = self.hubble_monitor_events.split(",")
        fields = {
            "bpf_events_drop_enabled": "drop",
            "bpf_events_trace_enabled": "trace",
            "bpf_events_policy_verdict_enabled": "policy-verdict",
            "trace_sock": "trace-sock",
        }
        return {field: kind in kinds for field, kind in fields.items()} if kinds[0] else {}

    @property
    def tells_of_agent(self) -> bool:
        """Whether what the agent does is an event."""
        return not self.hubble_monitor_events or "agent" in self.hubble_monitor_events.split(",")

    @property
    def silence(self) -> str:
        """What is not reported, and what there is a limit for, in words; empty: neither."""
        switches = {
            "drops": self.bpf_events_drop_enabled,
            "forwarded packets": self.bpf_events_trace_enabled,
            "policy verdicts": self.bpf_events_policy_verdict_enabled,
        }
        muted = [kind for kind, reported in switches.items() if not reported]
        limit = self.bpf_events_default_rate_limit
        words = [
            f"{' and '.join(muted)} not reported" if muted else "",
            f"at most {limit} events/s of a kind" if limit else "",
        ]
        return ", ".join(filter(None, words)) if self.events else ""

    @property
    def report_tcp_flags(self) -> int:
        """`monitor_aggregation_flags` as bits."""
        names = filter(None, self.monitor_aggregation_flags.split(","))
        return sum({1 << TCP_FLAGS.index(name) for name in names})
