"""All settings of an agent."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cilia.apps.agent.settings.datapath import DatapathSettings
from cilia.apps.agent.settings.drop_notices import DropNoticeSettings
from cilia.apps.agent.settings.events import EventSettings
from cilia.apps.agent.settings.export import FlowExportSettings
from cilia.apps.agent.settings.flow_metrics import FlowMetricSettings
from cilia.apps.agent.settings.history import FlowHistorySettings
from cilia.apps.agent.settings.hubble import HubbleServerSettings
from cilia.apps.agent.settings.node import NodeSettings
from cilia.apps.agent.settings.policy import PolicySettings
from cilia.apps.agent.settings.redaction import RedactionSettings
from cilia.apps.agent.settings.services import ServiceSettings

PARTS: tuple[tuple[str, type], ...] = (
    ("Node", NodeSettings),
    ("Data path", DatapathSettings),
    ("Policy", PolicySettings),
    ("Services", ServiceSettings),
    ("Events", EventSettings),
    ("Hubble", HubbleServerSettings),
    ("Hubble: history", FlowHistorySettings),
    ("Hubble: metrics", FlowMetricSettings),
    ("Hubble: drops as Events", DropNoticeSettings),
    ("Hubble: export", FlowExportSettings),
    ("Hubble: redaction", RedactionSettings),
)
"""Each with its heading."""
WITHOUT_HUBBLE: Mapping[str, Any] = {
    "events": False,
    "hubble_capacity": 1,
    "hubble_metrics": "",
    "hubble_dynamic_metrics_config_path": None,
    "hubble_drop_events": False,
    "hubble_export_file_path": "",
    "hubble_flowlogs_config_path": None,
    "hubble_listen_address": "",
    "hubble_disable_tls": False,
    "hubble_tls_cert_file": None,
    "hubble_tls_key_file": None,
    "hubble_tls_client_ca_files": "",
}
"""What there is of it where it is off, whatever flags say."""


class SettingsError(ValueError):
    """Settings that make no sense together."""


@dataclass(frozen=True, kw_only=True)
class AgentSettings(
    # The fields of the last come first.
    RedactionSettings,
    FlowExportSettings,
    DropNoticeSettings,
    FlowMetricSettings,
    FlowHistorySettings,
    HubbleServerSettings,
    EventSettings,
    ServiceSettings,
    PolicySettings,
    DatapathSettings,
    NodeSettings,
):
    """All settings of the agent; each is a flag and a variable, CILIA_<FIELD> unless it has another."""

    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each value comes from that is not the default, by field: flag or environment."""

    def completed(self) -> AgentSettings:
        """With what follows from other settings and from the machine. Raises SettingsError."""
        self.check()
        history = self.hubble_history_dir
        watched = self.watched
        source = self.sources.get("hubble_monitor_events", "default")
        return dataclasses.replace(
            self,
            **watched,
            **({} if self.enable_hubble else WITHOUT_HUBBLE),
            sources={**self.sources, **dict.fromkeys(watched, source)},
            node_name=self.node_name or os.uname().nodename,
            api_socket=self._in_state("api_socket", self.api_socket),
            cni_socket=self._in_state("cni_socket", self.cni_socket),
            hubble_socket=self._in_state("hubble_socket", self.hubble_socket),
            hubble_history_dir=self.state_dir / history if history and self.enable_hubble else None,
            cgroup_root=self.cgroup_root or cgroup_mount(),
        )

    def check(self) -> None:
        """Raises SettingsError for what makes no sense together."""
        if bool(self.bpf_events_default_rate_limit) != bool(self.bpf_events_default_burst_limit):
            raise SettingsError(
                "--bpf-events-default-rate-limit and --bpf-events-default-burst-limit go together: "
                "set both or none"
            )

    def _in_state(self, name: str, path: Path) -> Path:
        """Where nobody has said: beside the state."""
        return path if name in self.sources else self.state_dir / path.name


def cgroup_mount() -> Path | None:
    """Where control groups of version 2 are mounted; None: nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(point)
    return None
