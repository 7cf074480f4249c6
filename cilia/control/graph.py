"""The wiring of the brain: which node reads which table, and in which order they run.

    policies, cidr_groups, ──► RuleNode ──► (rules) ─┬──────────────────┐
    services, endpoint_slices                        │                  │
    nodes, endpoint_slices ──► ApiServerNode ──► (apiservers)           │
                                                     ▼                  │
    cluster_identities, nodes ────────────► IdentityNode ──► identities,│(cidrs), (node_ids) ──┐
                                                                 │      │                      │
    attachments, pods, namespaces, ─┐                            ▼      ▼                      │
    endpoint_options ───────────────┴► EndpointNode ─► endpoints ─► PolicyNode ─► subjects,    │
                                                           │           ▲          cookies,     │
    remote_endpoints ──────────────────────────────────────┼─┬─────────┘          policy_states│
                                                           ▼ │                                 ▼
                                      subjects ─► EntryNode  └───────────────────────► IpcacheNode ─► ipcache
                                                      └► endpoint_entries                      ▲
    nodes ──► NodesNode ──► node_addresses, routes ────────────────────────────────────────────┘

    services, endpoint_slices, nodes, ──► ServicesNode ──► service_entries, service_states, health_checks
    pods, redirects, local_services

One turn runs every node once, in an order in which each sees what the earlier ones wrote; no node writes
what an earlier one reads, so one pass is enough. Nodes that have nothing to do return at once.

A step is one turn, or up to three when rules begin to speak of other prefixes, since an address then changes
its identity together with the rules about it. Each turn is enforced before the next one:

    1  the identities that come, under the rules in force: an address's verdict stays what it was
    2  the rules: each subject changes its verdicts at once, no address its identity
    3  the identities go of which nobody speaks any more: no rule tells them from what is around them

So no packet meets an identity whose verdict is neither the old rules' nor the new ones'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cilia.control.apiserver import ApiServerNode
from cilia.control.endpoints import EndpointNode, EntryNode
from cilia.control.identity import IdentityNode
from cilia.control.ipcache import IpcacheNode
from cilia.control.nodes import NodesNode
from cilia.control.policy.dialects.parse import RuleBook
from cilia.control.policy.meaning.expand import RuleNode
from cilia.control.policy.node import PolicyNode
from cilia.control.services.node import ServicesNode
from cilia.control.services.settings import ServiceSettings
from cilia.model.ids import EndpointId, IdentityId, Revision, SubjectId
from cilia.model.node import Node
from cilia.model.policy import PolicyMode
from cilia.schema import Desired, Inputs


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """What the brain must know besides the tables."""

    node: str
    """Name of this node."""
    cluster: str = "default"
    """Name of the cluster, a label of every pod."""
    tunnel: bool = True
    """Pods of other nodes are reached through tunnels."""
    route_device: str = "cilia_host"
    """Device of the host's routes to pods."""
    mtu: int = 1450
    """Of the routes to pods, bytes."""
    mode: PolicyMode = PolicyMode.DEFAULT
    audit: bool = False
    """No denial is enforced on this node, only noted."""
    allow_localhost: bool = True
    """The node reaches its own pods unless a rule denies it."""
    cidr_nodes: bool = False
    """CIDR rules mean nodes, too."""
    identity_change_grace: float = 0.0
    """Seconds a relabelled pod keeps its old identity."""
    apiserver_addresses: tuple[str, ...] = ()
    """Of the API server, whether it runs on a node or outside the cluster."""
    host_firewall: bool = False
    """Policies that select nodes are enforced on this one."""
    services: ServiceSettings = field(default_factory=ServiceSettings)
    """How services are served on this node."""
    own: Node | None = None
    """What this node knows of itself: stands whatever the cluster says of it, or if it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a predecessor left in the kernel and on disk, so that numbers stay what they were."""

    cidrs: Mapping[str, IdentityId] = field(default_factory=dict)
    """Numbers of prefixes."""
    subjects: Mapping[EndpointId, SubjectId] = field(default_factory=dict)
    """Whose policy judged each endpoint."""


class ControlGraph:
    """Input tables in, desired tables out."""

    def __init__(
        self, inputs: Inputs, desired: Desired, config: GraphConfig, restored: Restored | None = None
    ) -> None:
        restored = restored or Restored()
        book = RuleBook(config.cluster, host_firewall=config.host_firewall)
        self.inputs = inputs
        self.desired = desired
        self._enforced = False
        """The rules of the last step are in force: before that there are none to go on under."""
        self.rules = RuleNode(inputs, book, cluster=config.cluster)
        self.apiservers = ApiServerNode(inputs, dialled=config.apiserver_addresses, own=config.own)
        self.identities = IdentityNode(
            inputs,
            desired,
            self.rules,
            restored=restored.cidrs,
            node=config.node,
            own=config.own,
            apiservers=self.apiservers.addresses,
            cidr_nodes=config.cidr_nodes,
        )
        self.services = ServicesNode(
            inputs, desired, node=config.node, settings=config.services, own=config.own
        )
        self.endpoints = EndpointNode(
            inputs,
            desired,
            cluster=config.cluster,
            grace=config.identity_change_grace,
            own=config.own,
        )
        self.policy = PolicyNode(
            inputs,
            desired,
            self.rules,
            mode=config.mode,
            audit=config.audit,
            allow_localhost=config.allow_localhost,
            cidr_nodes=config.cidr_nodes,
            restored=restored.subjects,
            own=config.own,
        )
        self.entries = EntryNode(desired, host_firewall=config.host_firewall)
        self.nodes = NodesNode(
            inputs,
            desired,
            node=config.node,
            device=config.route_device,
            mtu=config.mtu,
            own=config.own,
        )
        self.ipcache = IpcacheNode(
            inputs,
            desired,
            self.identities.cidrs,
            node=config.node,
            tunnel=config.tunnel,
            apiservers=self.apiservers.addresses,
            own=config.own,
            node_ids=self.identities.node_ids,
        )

    @property
    def policy_revision(self) -> Revision:
        """Counts changes of the policies; what people wait for."""
        return Revision(self.inputs.policies.revision)

    @property
    def complete(self) -> bool:
        """Whether every input is known in full; before that nothing may be enforced or pruned."""
        return all(table.synced for table in self.inputs.tables())

    def step(self, now: float) -> None:
        """Bring the desired tables up to date with the inputs. `now`: monotonic seconds."""
        for _ in self.turns(now):
            continue

    def turns(self, now: float) -> Iterator[None]:
        """As `step`, turn by turn: whoever enforces the tables does so at each of them, see the module."""
        self.rules.step()
        self.apiservers.step()
        self.services.step()
        self.identities.step(keep=True)
        self.endpoints.step(now)
        if self.identities.came and self._enforced:
            self.policy.step(self.policy.revision, keep_rules=True)
            self._follow_policy()
            yield
        self.policy.step(self.policy_revision)
        self._follow_policy()
        if self.identities.leaving:
            yield
            self.identities.step()
            self.policy.step(self.policy_revision)
            self._follow_policy()
        self._enforced = self.complete
        yield

    def _follow_policy(self) -> None:
        self.entries.step()
        self.nodes.step()
        self.ipcache.step()
        if self.complete:
            mark_synced(self.desired)


def mark_synced(desired: Desired) -> None:
    """Say that the desired tables are complete: what is not in them may go."""
    for table in desired.tables():
        table.synced = True


def restored_subjects(pairs: Iterable[tuple[int, int]]) -> dict[EndpointId, SubjectId]:
    """The subject of each endpoint, from (endpoint, subject) pairs of the kernel's endpoint map."""
    return {EndpointId(endpoint): SubjectId(subject) for endpoint, subject in pairs if subject}
