"""CNI calls: from a typed request to an endpoint that is enforced, and back.

An ADD is answered only when the kernel enforces the pod's policy and the endpoint would survive the agent.
The order is: addresses, identity and interface at once, the file on disk, the tables, the kernel, the
CiliumEndpoint, the answer. Killed in between, a restarted agent finds either the file (and adopts) or a
stray interface (and removes it); the runtime calls again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from cilia.apps.agent.identities import IdentityAllocator
from cilia.apps.agent.publish import EndpointPublisher
from cilia.apps.agent.state import EndpointFiles, SavedEndpoint
from cilia.cluster import store as cluster
from cilia.cluster.store import Store
from cilia.control.graph import ControlGraph
from cilia.model.endpoint import HOST_ENDPOINT, Attachment
from cilia.model.ids import EndpointId
from cilia.schema import Inputs, PodRow
from cilia.wire import cni

log = structlog.get_logger(__name__)

LAST_ENDPOINT = HOST_ENDPOINT - 1
POD_WAIT = 2.0
"""Seconds an ADD waits for the pod to appear at the API server."""
PUBLISH_WAIT = 2.0
"""Seconds an ADD waits until the cluster knows the endpoint; the pod works without."""


class Addresses(Protocol):
    """The node's pool of pod addresses."""

    def allocate(self, owner: str) -> tuple[str, str]:
        """An IPv4 and an IPv6 address (empty where the node has no prefix). Raises PoolExhausted."""
        ...

    def release(self, owner: str) -> None:
        """Give all addresses of an owner back; releasing nothing is no error."""
        ...


class PoolExhausted(Exception):
    """No address is free."""


@dataclass(frozen=True)
class PodInterface:
    """An interface that was made: names, index and hardware addresses."""

    host_interface: str
    ifindex: int
    mac: str
    host_mac: str


@dataclass(frozen=True, kw_only=True)
class Described:
    """Who a pod is; empty for a container that is no pod."""

    uid: str = ""
    identity: int = 0
    labels: tuple[str, ...] = ()


class PodLinks(Protocol):
    """What makes and removes pod interfaces."""

    def create(
        self, identifier: EndpointId, netns: str, interface: str, ipv4: str, ipv6: str, mtu: int
    ) -> PodInterface: ...

    def remove(self, host_interface: str) -> None: ...

    def exists(self, host_interface: str, ifindex: int) -> bool: ...

    @property
    def mtu(self) -> int: ...


class Enforcer(Protocol):
    """The control graph and the kernel behind it, in one step."""

    def step(self) -> None: ...

    def realised(self, identifier: EndpointId) -> str | None:
        """None when the kernel enforces the endpoint, else why not yet."""
        ...


@dataclass(frozen=True)
class Gateways:
    """The router addresses the pods use, empty where there is none."""

    ipv4: str
    ipv6: str


class Attacher:
    """Serves ADD, DEL, CHECK, GC and STATUS; the server sees to one call at a time for each interface."""

    def __init__(
        self,
        *,
        inputs: Inputs,
        graph: ControlGraph,
        store: Store,
        files: EndpointFiles,
        addresses: Addresses,
        links: PodLinks,
        enforcer: Enforcer,
        identities: IdentityAllocator,
        publisher: EndpointPublisher,
        gateways: Gateways,
        put_pod: Callable[[bytes], PodRow],
    ) -> None:
        self._inputs = inputs
        self._graph = graph
        self._store = store
        self._files = files
        self._addresses = addresses
        self._links = links
        self._enforcer = enforcer
        self._identities = identities
        self._publisher = publisher
        self._gateways = gateways
        self._put_pod = put_pod
        self._last_id = max((row.id for row in inputs.attachments), default=0)
        self.ready = False

    async def serve(self, request: cni.Request) -> cni.Result | None:
        """Do what a runtime asks. Raises CniError with what the runtime is told."""
        match request:
            case cni.Add():
                return await self.add(request)
            case cni.Delete():
                await self.delete(request)
            case cni.Check():
                self.check(request)
            case cni.CollectGarbage():
                await self.collect(request)
            case cni.Status():
                self._require_ready(cni.Code.NOT_AVAILABLE)
        return None

    def _require_ready(self, code: cni.Code) -> None:
        if not self.ready:
            raise cni.CniError(code, "the agent is starting and not ready for pods: try again in a moment")

    async def add(self, request: cni.Add) -> cni.Result:
        """Attach a container; a repeated ADD of what is there answers as the first did."""
        self._require_ready(cni.Code.TRY_AGAIN_LATER)
        before = self._find(request.container_id, request.interface)
        if before is not None:
            if before.netns == request.netns and self._links.exists(before.host_interface, before.ifindex):
                return self._result(before)
            await self._remove(before)
        owner = f"{request.container_id}/{request.interface}"
        try:
            ipv4, ipv6 = self._addresses.allocate(owner)
        except PoolExhausted as error:
            raise cni.CniError(cni.Code.NO_ADDRESS, str(error)) from error
        try:
            attachment = await self._make(request, ipv4, ipv6)
        except BaseException:
            self._addresses.release(owner)
            raise
        return self._result(attachment)

    async def _make(self, request: cni.Add, ipv4: str, ipv6: str) -> Attachment:
        identifier = self._next_id()
        describing = asyncio.ensure_future(self._describe(request.pod))
        # Let the question to the API server leave before the interface is made, so that both overlap.
        await asyncio.sleep(0)
        try:
            made = self._links.create(
                identifier,
                request.netns,
                request.interface,
                ipv4,
                ipv6,
                request.network.mtu or self._links.mtu,
            )
        except BaseException as error:
            describing.cancel()
            await asyncio.gather(describing, return_exceptions=True)
            if not isinstance(error, OSError):
                raise
            reason = error.strerror or str(error)
            if error.filename == request.netns:
                raise cni.CniError(cni.Code.INVALID_NETNS, f"{request.netns}: {reason}") from error
            raise cni.CniError(
                cni.Code.IO_FAILURE, f"the interface {request.interface} could not be made: {reason}"
            ) from error
        attachment = Attachment(
            id=identifier,
            container_id=request.container_id,
            interface=request.interface,
            netns=request.netns,
            host_interface=made.host_interface,
            ifindex=made.ifindex,
            mac=made.mac,
            host_mac=made.host_mac,
            ipv4=ipv4,
            ipv6=ipv6,
            namespace=request.pod.namespace,
            pod=request.pod.name,
            pod_uid=request.pod.uid,
        )
        try:
            described = await describing
            if described.uid and not attachment.pod_uid:
                attachment = _with_uid(attachment, described.uid)
            await self._enforce(attachment, described)
        except BaseException:
            self._undo(attachment)
            raise
        return attachment

    async def _describe(self, pod: cni.Pod) -> Described:
        """Who the pod is: before anything is attached, its labels have a number."""
        if not pod.name:
            return Described()
        key = (pod.namespace, pod.name)
        row = self._inputs.pods.get(key)
        if row is None or (pod.uid and row.uid and row.uid != pod.uid):
            row = await self._fetch(pod)
        labels = self._graph.endpoints.labels_of(pod.namespace, row)
        try:
            identity = await self._identities.allocate(labels)
        except cluster.StoreError as error:
            raise cni.CniError(
                cni.Code.TRY_AGAIN_LATER, f"no identity for {pod.namespace}/{pod.name} yet: {error}"
            ) from error
        return Described(uid=row.uid, identity=identity, labels=tuple(labels.strings()))

    async def _fetch(self, pod: cni.Pod) -> PodRow:
        """Ask for a pod the watch has not brought yet."""
        where = f"{pod.namespace}/{pod.name}"
        deadline = asyncio.get_running_loop().time() + POD_WAIT
        while True:
            try:
                raw = await self._store.get(cluster.PODS, pod.name, namespace=pod.namespace)
                return self._put_pod(raw)
            except cluster.NotFound as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise cni.CniError(
                        cni.Code.TRY_AGAIN_LATER, f"there is no pod {where} at the API server"
                    ) from error
                await asyncio.sleep(0.05)
            except cluster.StoreError as error:
                raise cni.CniError(
                    cni.Code.TRY_AGAIN_LATER, f"the pod {where} could not be read: {error}"
                ) from error

    async def _enforce(self, attachment: Attachment, described: Described) -> None:
        """Disk, tables, kernel, cluster: in this order."""
        self._save(SavedEndpoint(attachment=attachment, identity=described.identity, labels=described.labels))
        self._inputs.attachments.put(attachment)
        self._enforcer.step()
        reason = self._enforcer.realised(attachment.id)
        if reason is not None:
            raise cni.CniError(cni.Code.TRY_AGAIN_LATER, f"the endpoint is not enforced yet: {reason}")
        try:
            async with asyncio.timeout(PUBLISH_WAIT):
                await self._publisher.publish(attachment.id)
        except (cluster.StoreError, TimeoutError) as error:
            # Other nodes learn of the pod when the API server is back; this node serves it now.
            reason = str(error) or "the API server is silent"
            log.warning("endpoint not published yet", endpoint=attachment.id, error=reason)
            self._publisher.retry(attachment.id)

    def _save(self, endpoint: SavedEndpoint) -> None:
        try:
            self._files.save(endpoint)
        except OSError as error:
            raise cni.CniError(
                cni.Code.IO_FAILURE,
                f"the endpoint could not be saved ({error.strerror or error}): make room in the agent's "
                "state directory",
            ) from error

    def _undo(self, attachment: Attachment) -> None:
        self._inputs.attachments.delete(attachment.id)
        self._enforcer.step()
        self._links.remove(attachment.host_interface)
        self._files.remove(attachment.id)

    async def delete(self, request: cni.Delete) -> None:
        """Detach a container; detaching the unknown is a success."""
        before = self._find(request.container_id, request.interface)
        if before is not None:
            await self._remove(before)
        self._addresses.release(f"{request.container_id}/{request.interface}")

    async def _remove(self, attachment: Attachment) -> None:
        self._inputs.attachments.delete(attachment.id)
        self._enforcer.step()
        # Removing a link waits for a grace period in the kernel: the loop has other things to do.
        await asyncio.to_thread(self._links.remove, attachment.host_interface)
        self._addresses.release(f"{attachment.container_id}/{attachment.interface}")
        self._files.remove(attachment.id)

    def check(self, request: cni.Check) -> None:
        """Compare what is there with what ADD returned."""
        attachment = self._find(request.container_id, request.interface)
        if attachment is None:
            raise cni.CniError(
                cni.Code.UNKNOWN_CONTAINER, f"the container {request.container_id} is not attached"
            )
        if not self._links.exists(attachment.host_interface, attachment.ifindex):
            raise cni.CniError(cni.Code.NOT_AS_EXPECTED, f"the interface {attachment.host_interface} is gone")
        said = {address.address.partition("/")[0] for address in request.previous.ips}
        held = {address for address in (attachment.ipv4, attachment.ipv6) if address}
        if said and said != held:
            raise cni.CniError(
                cni.Code.NOT_AS_EXPECTED,
                f"the container has {', '.join(sorted(held))} and not {', '.join(sorted(said))}",
            )
        reason = self._enforcer.realised(attachment.id)
        if reason is not None:
            raise cni.CniError(cni.Code.NOT_AS_EXPECTED, f"the endpoint is not enforced: {reason}")

    async def collect(self, request: cni.CollectGarbage) -> None:
        """Remove what the runtime no longer knows."""
        for attachment in list(self._inputs.attachments):
            if (attachment.container_id, attachment.interface) not in request.valid:
                await self._remove(attachment)

    def _find(self, container: str, interface: str) -> Attachment | None:
        rows = self._inputs.attachments.by("container", (container, interface))
        return rows[0] if rows else None

    def _next_id(self) -> EndpointId:
        """The next free number after the last given out: a number rests before it is used again."""
        for _ in range(LAST_ENDPOINT):
            self._last_id = self._last_id % LAST_ENDPOINT + 1
            if EndpointId(self._last_id) not in self._inputs.attachments:
                return EndpointId(self._last_id)
        raise cni.CniError(cni.Code.TRY_AGAIN_LATER, "the node has no endpoint number left")

    def _result(self, attachment: Attachment) -> cni.Result:
        pairs = ((attachment.ipv4, self._gateways.ipv4, 32), (attachment.ipv6, self._gateways.ipv6, 128))
        return cni.Result(
            interfaces=(
                cni.Interface(name=attachment.host_interface, mac=attachment.host_mac),
                cni.Interface(
                    name=attachment.interface,
                    mac=attachment.mac,
                    sandbox=attachment.netns,
                    mtu=self._links.mtu,
                ),
            ),
            ips=tuple(
                cni.Address(address=f"{address}/{bits}", gateway=gateway, interface=1)
                for address, gateway, bits in pairs
                if address
            ),
            routes=tuple(
                cni.Route(dst="0.0.0.0/0" if bits == 32 else "::/0", gw=gateway)
                for address, gateway, bits in pairs
                if address
            ),
        )


def _with_uid(attachment: Attachment, uid: str) -> Attachment:
    return msgspec.structs.replace(attachment, pod_uid=uid)
