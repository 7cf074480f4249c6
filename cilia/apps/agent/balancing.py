"""Services as this agent is told to serve them: settings for the brain and for the data path, and the end of
sockets whose backend is gone."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import structlog

from cilia.apps.agent.kernel import NodeKernel
from cilia.apps.agent.settings import AgentSettings
from cilia.control.services.settings import Mode, ServiceSettings
from cilia.dataplane import namespaces
from cilia.dataplane.netlink import NetlinkError
from cilia.model.ids import EndpointId
from cilia.model.service import Algorithm, Backend, Frontend, Protocol, ServiceEntry
from cilia.schema import Desired, Inputs

log = structlog.get_logger(__name__)

OWN_NETWORK = "/proc/thread-self/ns/net"
BackendKey = tuple[str, int, int]


def brain_settings(settings: AgentSettings, addresses: Sequence[str]) -> ServiceSettings:
    """What the brain must know. `addresses`: all of this node."""
    return ServiceSettings(
        enabled=settings.kube_proxy_replacement,
        algorithm=Algorithm(settings.bpf_lb_algorithm),
        mode=Mode(settings.bpf_lb_mode),
        external_cluster_ip=settings.bpf_lb_external_clusterip,
        source_ranges_everywhere=settings.bpf_lb_source_range_all_types,
        reject=settings.service_no_backend_response == "reject",
        proxy_name=settings.k8s_service_proxy_name,
        topology=settings.enable_service_topology,
        node_port_addresses=tuple(within(addresses, settings.nodeport_addresses)),
        node_ports=settings.node_ports,
        health_checks=settings.enable_health_check_nodeport,
        health_checks_at_load_balancer=settings.enable_health_check_loadbalancer_ip,
        local_redirects=settings.enable_local_redirect_policy,
        redirect_prefixes=tuple(
            str(ipaddress.ip_network(text.strip(), strict=False))
            for text in filter(None, settings.lrp_address_matcher_cidrs.split(","))
        ),
    )


def within(addresses: Iterable[str], prefixes: str) -> Iterator[str]:
    """The addresses that lie in one of the prefixes."""
    networks = [
        ipaddress.ip_network(text.strip(), strict=False) for text in filter(None, prefixes.split(","))
    ]
    return (text for text in addresses if any(ipaddress.ip_address(text) in network for network in networks))


class PodNetworks:
    """What tells the network namespaces of this node's pods apart."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._cookies: dict[str, int] = {}

    def cookie(self, endpoint: EndpointId) -> int:
        """Cookie of a pod's network namespace; 0 when it is gone."""
        attachment = self._inputs.attachments.get(endpoint)
        if attachment is None:
            return 0
        found = self._cookies.get(attachment.container_id)
        if found is None:
            if len(self._cookies) > 2 * len(self._inputs.attachments) + 16:
                self._cookies.clear()
            found = self._cookies[attachment.container_id] = _cookie_at(attachment.netns)
        return found


def _cookie_at(path: str) -> int:
    try:
        namespace = namespaces.open_network(path)
        try:
            return namespaces.cookie(namespace)
        finally:
            os.close(namespace)
    except OSError:
        return 0


class SocketEnder:
    """Ends the sockets that a service gave a backend which no service has any more, so that their owners
    connect anew instead of talking to nobody. Those of datagrams, which never end by themselves, end with
    their own frontend's use of the backend."""

    def __init__(self, inputs: Inputs, desired: Desired, kernel: NodeKernel) -> None:
        self._inputs = inputs
        self._kernel = kernel
        self._entries = desired.service_entries.cursor()
        self._known: dict[Frontend, ServiceEntry] = {}
        self._uses: Counter[BackendKey] = Counter()
        self._gone: dict[BackendKey, Backend] = {}
        self._left: dict[tuple[Frontend, BackendKey], Backend] = {}
        """Backends of datagrams that a frontend does not lead to any more, though others do."""
        self.wake = asyncio.Event()
        """Set when there is something to end."""

    def look(self) -> None:
        """Take notice of changed services; called after each step."""
        put, deleted = self._entries.take()
        for row in put:
            self._change(row.frontend, self._known.get(row.frontend), row)
            self._known[row.frontend] = row
        for frontend in deleted:
            self._change(frontend, self._known.pop(frontend, None), None)
        if self._gone or self._left:
            self.wake.set()

    def _change(self, frontend: Frontend, before: ServiceEntry | None, after: ServiceEntry | None) -> None:
        old, new = _backends(before), _backends(after)
        for key in new.keys() - old.keys():
            self._uses[key] += 1
            self._gone.pop(key, None)
            self._left.pop((frontend, key), None)
        for key in old.keys() - new.keys():
            self._uses[key] -= 1
            if frontend.protocol is Protocol.UDP:
                self._left[frontend, key] = old[key]
            if not self._uses[key]:
                del self._uses[key]
                self._gone[key] = old[key]

    async def run(self) -> None:
        """End those of before, then those that come to be, for ever."""
        self._recall(await asyncio.to_thread(self._kernel.given_backends))
        while True:
            await self.wake.wait()
            self.wake.clear()
            try:
                await self.end()
            except (OSError, NetlinkError) as error:
                log.warning("sockets of gone backends are not ended", reason=str(error))

    def _recall(self, given: Iterable[Backend]) -> None:
        """Backends that went while no agent looked are gone, too."""
        for backend in given:
            key = backend.address, backend.port, int(backend.protocol)
            if key not in self._uses:
                self._gone[key] = backend
                self.wake.set()

    async def end(self) -> None:
        """End those of the backends that went. Raises OSError and NetlinkError; they are let be then."""
        gone, self._gone = self._gone, {}
        left, self._left = self._left, {}
        alone = [(frontend, backend) for (frontend, key), backend in left.items() if key not in gone]
        if not gone and not alone:
            return
        networks = [OWN_NETWORK, *(row.netns for row in self._inputs.attachments)]
        ended = await asyncio.to_thread(self._kernel.end_sockets, networks, list(gone.values()), alone)
        if ended:
            log.info("sockets ended", backends=len(gone) + len(alone), sockets=ended)


def _backends(row: ServiceEntry | None) -> dict[BackendKey, Backend]:
    if row is None:
        return {}
    return {
        (one.address, one.port, int(one.protocol)): one
        for some in {id(part): part for part in (row.internal, row.external, row.draining)}.values()
        for one in some
    }
