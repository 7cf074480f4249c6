"""What an operator may set about an agent: a dataclass for each part, one that has them all.

    node       which node this is
    datapath   tunnels, masquerade, conntrack
    policy     who is isolated
    services   load balancing (`addresses`: what may be written for one)
    events     what the data path says
    hubble     the flows in memory and the doors to them
    history, flow_metrics, drop_notices, export, redaction
               what else is done with flows
    agent      all of it, as an agent takes it

A setting is a field of its part, with type, default, what may be written and what it means; from that
`kit.flags` makes the flag, the variable, the heading in help and the line of `cilia config`. Only what
concerns two parts is checked in `agent`. Nothing here imports the parts themselves: help is printed before
anything is loaded.
"""

from cilia.apps.agent.settings.agent import AgentSettings, SettingsError, cgroup_mount

__all__ = ["AgentSettings", "SettingsError", "cgroup_mount"]
