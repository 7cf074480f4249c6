"""What a lab is made of before anything is made: names, paths and addresses. Pure."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

STATE_ROOT = Path("/run/cilia-lab")
DEFAULT_NAME = "default"
MAX_NODES = 16
FIRST_NODE_HOST = 11
"""Last part of the first node's underlay address; .1 is the fabric's router."""

UNDERLAY_V4 = "172.18.0."
UNDERLAY_V6 = "fd00:172:18::"
OUTSIDE_V4 = "203.0.113."
OUTSIDE_V6 = "2001:db8:203::"
"""Documentation prefixes (RFC 5737, RFC 3849): the world beyond the cluster."""

OUTSIDE_HOST = (f"{OUTSIDE_V4}2", f"{OUTSIDE_V6}2")
"""The addresses of the host beyond the cluster."""

BALANCED_V4 = "198.51.100.0/24"
BALANCED_V6 = "2001:db8:198::/64"
"""Addresses for load balancers (RFC 5737, RFC 3849): the fabric spreads flows to them over all nodes."""

API_PORT = 6443
RELAY_PORT = 4245
DEFAULT_IMAGE = "cilia.io/lab/server"

_NAME = re.compile(r"[a-z0-9]{1,12}")
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


class PlanError(ValueError):
    """What was asked for can't be a lab; the message is one sentence for a person."""


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One node: where its files are and which underlay addresses it has."""

    name: str
    index: int
    ipv4: str
    ipv6: str
    directory: str
    """State of the agent, the CNI directories and the sockets of this node."""
    bpf_prefix: str
    netns: str
    pod_ipv4_cidr: str
    """Used only with a source directory; else the operator gives out pod CIDRs."""
    pod_ipv6_cidr: str

    @property
    def agent_socket(self) -> str:
        """The agent's REST API."""
        return f"{self.directory}/agent.sock"

    @property
    def hubble_socket(self) -> str:
        """The agent's Hubble server."""
        return f"{self.directory}/hubble.sock"

    @property
    def cni_bin(self) -> str:
        """Where the agent puts the plugin's executable."""
        return f"{self.directory}/bin"

    @property
    def cni_conf(self) -> str:
        """Where the agent puts the network configuration list."""
        return f"{self.directory}/net.d"


class LabPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A lab: written to its state directory first, so that every later command knows it."""

    name: str
    state: str
    nodes: tuple[NodePlan, ...]
    source_dir: str = ""
    """A directory of YAML instead of an API server."""
    aggregation: str = "medium"
    events: bool = True
    agent_flags: tuple[str, ...] = ()
    """More flags of every agent, such as --host-firewall."""
    agent_program: tuple[str, ...] = ()
    """A stand-in to run instead of the agent and without the operator, to try the lab itself."""
    relay: bool = False
    """Whether a relay answers for all nodes; agents then serve Hubble by TLS and count flows."""

    @property
    def netns_dir(self) -> str:
        """Holds the bind mounts that keep the lab's network namespaces alive."""
        return f"{self.state}/netns"

    @property
    def fabric(self) -> str:
        """The namespace whose bridge joins the nodes."""
        return f"{self.netns_dir}/fabric"

    @property
    def outside(self) -> str:
        """The namespace of a host of the outside world."""
        return f"{self.netns_dir}/outside"

    @property
    def bpffs(self) -> str:
        """The lab's own bpffs mount; each node has a prefix in it."""
        return f"{self.state}/bpf"

    @property
    def cgroup_name(self) -> str:
        """The top cgroup of the lab, below the version 2 mount."""
        return f"cilia-lab-{self.name}"

    @property
    def control_socket(self) -> str:
        """Where the lab's daemon takes commands."""
        return f"{self.state}/lab.sock"

    @property
    def relay_socket(self) -> str:
        """The relay, for this machine."""
        return f"{self.state}/relay.sock"

    @property
    def relay_address(self) -> str:
        """The relay, for everybody in the fabric, by mutual TLS."""
        return f"{UNDERLAY_V4}1:{RELAY_PORT}"

    @property
    def certificates(self) -> str:
        """Hubble's certificates, a folder for each who shows one."""
        return f"{self.state}/hubble-certs"

    @property
    def kubeconfig(self) -> str:
        """The administrator's credentials, for kubectl on this machine."""
        return f"{self.state}/kubeconfig"

    @property
    def log_dir(self) -> str:
        """One file per process."""
        return f"{self.state}/log"

    @property
    def pods_dir(self) -> str:
        """One directory per running pod."""
        return f"{self.state}/pods"

    @property
    def api_address(self) -> str:
        """Where nodes reach the API server: the fabric's router."""
        return f"{UNDERLAY_V4}1"

    def node(self, name: str) -> NodePlan:
        """Return a node by name; raises PlanError."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise PlanError(f"the lab has no node {name!r}; it has {known}")


def state_directory(name: str, root: Path = STATE_ROOT) -> Path:
    """Return a lab's state directory; raises PlanError for a name that can't be one."""
    if not _NAME.fullmatch(name):
        raise PlanError(f"a lab's name is 1 to 12 small letters or digits, not {name!r}")
    return root / name


def make_plan(
    name: str = DEFAULT_NAME,
    nodes: int = 2,
    *,
    root: Path = STATE_ROOT,
    source_dir: str = "",
    aggregation: str = "medium",
    events: bool = True,
    agent_flags: tuple[str, ...] = (),
    agent_program: tuple[str, ...] = (),
    relay: bool = False,
) -> LabPlan:
    """Lay out a lab; raises PlanError when it can't be."""
    state = state_directory(name, root)
    if not 1 <= nodes <= MAX_NODES:
        raise PlanError(f"a lab has 1 to {MAX_NODES} nodes, not {nodes}")
    if source_dir and nodes != 1:
        raise PlanError("a lab on a directory of YAML has one node: leave out --source-dir or --nodes")
    return LabPlan(
        name=name,
        state=str(state),
        nodes=tuple(_node(state, index) for index in range(nodes)),
        source_dir=source_dir,
        aggregation=aggregation,
        events=events,
        agent_flags=tuple(f"--{flag.lstrip('-')}" for flag in agent_flags),
        agent_program=agent_program,
        relay=relay and not source_dir,
    )


def _node(state: Path, index: int) -> NodePlan:
    name = f"node-{index + 1}"
    host = FIRST_NODE_HOST + index
    return NodePlan(
        name=name,
        index=index,
        ipv4=f"{UNDERLAY_V4}{host}",
        ipv6=f"{UNDERLAY_V6}{host}",
        directory=str(state / "nodes" / name),
        bpf_prefix=str(state / "bpf" / name),
        netns=str(state / "netns" / name),
        pod_ipv4_cidr=f"10.244.{index}.0/24",
        pod_ipv6_cidr=f"fd00:10:244:{index:x}::/120",
    )


def parse_pod(text: str) -> tuple[str, str]:
    """Split NAMESPACE/POD; a bare POD is in `default`. Raises PlanError."""
    namespace, slash, pod = text.rpartition("/")
    namespace = namespace if slash else "default"
    if not _NODE_NAME.fullmatch(namespace) or not pod:
        raise PlanError(f"name the pod as NAMESPACE/POD, not {text!r}")
    return namespace, pod
