"""Every table of the agent on one page: what a row is, its key, who writes it, who reads it.

The rooms meet here and nowhere else. One writer per table.

    input tables (writer: sources, api)          desired tables (writer: control)
    ----------------------------------           --------------------------------
    pods, namespaces, policies, nodes,           endpoint_entries, subjects, ipcache,
    remote_endpoints, cluster_identities,        routes, node_addresses, cookies,
    cidr_groups, services, endpoint_slices,      policy_states, endpoints, identities
    attachments, endpoint_options
"""

from __future__ import annotations

from cilia.model.endpoint import Attachment, Endpoint, EndpointEntry, NamedPort, RemoteEndpoint
from cilia.model.identity import Identity
from cilia.model.ids import Cookie, EndpointId, IdentityId, SubjectId
from cilia.model.node import IpcacheEntry, Node, NodeAddress, Route
from cilia.model.policy import CookieRow, PolicyObject, PolicyState, SubjectPolicy
from cilia.model.service import Frontend, HealthCheck, ServiceEntry, ServiceState
from cilia.schema.rows import (
    CidrGroupRow,
    EndpointOptions,
    EndpointSliceRow,
    LocalRedirectRow,
    LocalServiceRow,
    NamespaceRow,
    PodRow,
    ServiceRow,
)
from cilia.tables.table import Table

__all__ = [
    "CidrGroupRow",
    "Desired",
    "EndpointOptions",
    "EndpointSliceRow",
    "Inputs",
    "LocalRedirectRow",
    "LocalServiceRow",
    "NamedPort",
    "NamespaceRow",
    "PodRow",
    "ServiceRow",
]


class Inputs:
    """What the outside world says. Control reads these and nothing else."""

    def __init__(self) -> None:
        self.pods: Table[tuple[str, str], PodRow] = Table("pods", lambda row: (row.namespace, row.name))
        """Pods of this node. Writer: sources.pods. Readers: control.endpoints, api."""

        self.namespaces: Table[str, NamespaceRow] = Table("namespaces", lambda row: row.name)
        """Namespaces and their labels. Writer: sources.namespaces. Readers: control.identity."""

        self.policies: Table[tuple[str, str, str], PolicyObject] = Table("policies", lambda row: row.key)
        """Policies of all kinds. Writer: sources.policies. Readers: control.policy."""

        self.nodes: Table[str, Node] = Table("nodes", lambda row: row.name)
        """Nodes of the cluster, this one too. Writer: sources.nodes. Readers: control.nodes."""

        self.remote_endpoints: Table[tuple[str, str], RemoteEndpoint] = Table(
            "remote_endpoints", lambda row: (row.namespace, row.name)
        )
        """CiliumEndpoints of other nodes. Writer: sources.endpoints. Readers: control.ipcache."""

        self.cluster_identities: Table[IdentityId, Identity] = Table(
            "cluster_identities", lambda row: row.id, {"labels": lambda row: (row.labels,)}
        )
        """CiliumIdentities. Writer: sources.identities. Readers: control.identity."""

        self.cidr_groups: Table[str, CidrGroupRow] = Table("cidr_groups", lambda row: row.name)
        """CiliumCIDRGroups. Writer: sources.cidr_groups. Reader: control.policy."""

        self.services: Table[tuple[str, str], ServiceRow] = Table(
            "services", lambda row: (row.namespace, row.name)
        )
        """Services. Writer: sources.services. Readers: control.policy, control.services."""

        self.endpoint_slices: Table[tuple[str, str], EndpointSliceRow] = Table(
            "endpoint_slices",
            lambda row: (row.namespace, row.name),
            {"service": lambda row: ((row.namespace, row.service),)},
        )
        """EndpointSlices. Writer: sources.services. Readers: control.policy, control.services."""

        self.redirects: Table[tuple[str, str], LocalRedirectRow] = Table(
            "redirects", lambda row: (row.namespace, row.name)
        )
        """CiliumLocalRedirectPolicies. Writer: sources.redirects. Reader: control.services."""

        self.local_services: Table[Frontend, LocalServiceRow] = Table(
            "local_services", lambda row: row.frontend
        )
        """Services written by hand on this node. Writer: api. Reader: control.services."""

        self.endpoint_options: Table[EndpointId, EndpointOptions] = Table(
            "endpoint_options", lambda row: row.endpoint
        )
        """Live switches of endpoints. Writer: api. Reader: control.endpoints."""

        self.attachments: Table[EndpointId, Attachment] = Table(
            "attachments",
            lambda row: row.id,
            {
                "container": lambda row: ((row.container_id, row.interface),),
                "pod": lambda row: ((row.namespace, row.pod),),
            },
        )
        """Interfaces the CNI plugin made here. Writer: api (CNI). Readers: control.endpoints."""

    def tables(self) -> list[Table]:  # type: ignore[type-arg]
        """All of them, in the order of this page."""
        return [table for table in vars(self).values() if isinstance(table, Table)]


class Desired:
    """What should be. Data plane, Hubble and API read these."""

    def __init__(self) -> None:
        self.endpoints: Table[EndpointId, Endpoint] = Table(
            "endpoints",
            lambda row: row.id,
            {"identity": lambda row: (row.identity,), "address": lambda row: row.addresses},
        )
        """Local endpoints with identity and state. Writer: control.endpoints. Readers: api, hubble,
        the writer of CiliumEndpoints."""

        self.identities: Table[IdentityId, Identity] = Table("identities", lambda row: row.id)
        """All identities known here: reserved, cluster, local. Writer: control.identity. Readers:
        control.policy, hubble, api."""

        self.endpoint_entries: Table[EndpointId, EndpointEntry] = Table(
            "endpoint_entries", lambda row: row.id
        )
        """Endpoints as the kernel knows them. Writer: control.endpoints. Reader: dataplane."""

        self.subjects: Table[SubjectId, SubjectPolicy] = Table("subjects", lambda row: row.subject)
        """Policy entries per subject. Writer: control.policy. Readers: dataplane, api."""

        self.ipcache: Table[str, IpcacheEntry] = Table("ipcache", lambda row: row.prefix)
        """Prefix to identity and tunnel endpoint. Writer: control.ipcache. Readers: dataplane, hubble."""

        self.routes: Table[str, Route] = Table("routes", lambda row: row.prefix)
        """Routes of the host's stack to pods. Writer: control.nodes. Reader: dataplane."""

        self.node_addresses: Table[str, NodeAddress] = Table("node_addresses", lambda row: row.address)
        """Underlay addresses of all nodes. Writer: control.nodes. Reader: dataplane."""

        self.cookies: Table[Cookie, CookieRow] = Table("cookies", lambda row: row.cookie)
        """Rule cookies and what they stand for. Writer: control.policy. Readers: hubble, api, disk."""

        self.policy_states: Table[tuple[str, str, str], PolicyState] = Table(
            "policy_states", lambda row: row.key
        )
        """Valid or not, and why. Writer: control.policy. Readers: api, the writer of statuses."""

        self.service_entries: Table[Frontend, ServiceEntry] = Table(
            "service_entries",
            lambda row: row.frontend,
            {"service": lambda row: ((row.namespace, row.name),)},
        )
        """Frontends and their backends. Writer: control.services. Readers: dataplane, hubble, api."""

        self.service_states: Table[tuple[str, str, str], ServiceState] = Table(
            "service_states", lambda row: row.key
        )
        """Objects that ask for frontends, and what is wrong with them. Writer: control.services. Readers:
        api, the writer of events."""

        self.health_checks: Table[int, HealthCheck] = Table("health_checks", lambda row: row.port)
        """Health-check node ports of this node. Writer: control.services. Reader: the agent's health
        server."""

    def tables(self) -> list[Table]:  # type: ignore[type-arg]
        """All of them, in the order of this page."""
        return [table for table in vars(self).values() if isinstance(table, Table)]
