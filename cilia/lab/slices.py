"""Keep the EndpointSlices of each service and family: the pods its selector names, and how they are.

Source: Kubernetes API reference, discovery.k8s.io/v1 EndpointSlice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from cilia.cluster.store import (
    ENDPOINT_SLICES,
    NODES,
    PODS,
    SERVICES,
    AlreadyExists,
    NotFound,
    Store,
    StoreError,
    encode,
)
from cilia.kit.tasks import TaskGroup
from cilia.lab.follow import follow
from cilia.lab.objects import LabPod, Service, ServicePort
from cilia.model.resources.core import Node

log = structlog.get_logger(__name__)

Key = tuple[str, str]
FAMILIES = ("IPv4", "IPv6")
SLICE_LIMIT = 100
"""Endpoints of one slice."""
ZONE_LABEL = "topology.kubernetes.io/zone"


def selected(service: Service, pods: Iterable[LabPod]) -> list[LabPod]:
    """Return the running pods of a service, by name; a service without selector has none."""
    wanted = service.spec.selector
    if not wanted or service.spec.type == "ExternalName":
        return []
    return sorted(
        (
            pod
            for pod in pods
            if pod.metadata.namespace == service.metadata.namespace
            and pod.status.phase == "Running"
            and wanted.items() <= (pod.metadata.labels or {}).items()
        ),
        key=lambda pod: pod.metadata.name,
    )


def slice_objects(
    service: Service, family: str, pods: Iterable[LabPod], zones: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the slices of one address family, at least one. `zones`: of nodes.

    Pods that number a named target port differently are in slices of their own, and none holds more than a
    hundred.
    """
    groups: dict[tuple[int, ...], list[LabPod]] = {}
    for pod in pods:
        if _address(pod, family):
            groups.setdefault(_numbers(service, pod), []).append(pod)
    parts = [
        (numbers, members[start : start + SLICE_LIMIT])
        for numbers, members in sorted(groups.items())
        for start in range(0, len(members), SLICE_LIMIT)
    ]
    parts = parts or [(tuple(_number(port) for port in service.spec.ports or ()), [])]
    return [
        _slice(service, family, index, numbers, [_endpoint(service, pod, family, zones) for pod in members])
        for index, (numbers, members) in enumerate(parts)
    ]


def _slice(
    service: Service, family: str, index: int, numbers: tuple[int, ...], endpoints: list[dict[str, Any]]
) -> dict[str, Any]:
    meta = service.metadata
    return {
        "metadata": {
            "name": f"{meta.name}-{family.lower()}" + (f"-{index + 1}" if index else ""),
            "namespace": meta.namespace,
            "labels": {
                "kubernetes.io/service-name": meta.name,
                "endpointslice.kubernetes.io/managed-by": "cilia-lab",
            },
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": meta.name,
                    "uid": meta.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [
            {"name": port.name, "protocol": port.protocol, "port": number}
            for port, number in zip(service.spec.ports or (), numbers, strict=True)
            if number
        ],
    }


def _address(pod: LabPod, family: str) -> str:
    for entry in pod.status.pod_ips or ():
        if (":" in entry.ip) == (family == "IPv6"):
            return entry.ip
    return ""


def _endpoint(service: Service, pod: LabPod, family: str, zones: Mapping[str, str]) -> dict[str, Any]:
    """A pod that ends is never ready, but may still serve; who wants pods that are not ready says so."""
    regardless = service.spec.publish_not_ready_addresses
    node = pod.spec.node_name
    endpoint: dict[str, Any] = {
        "addresses": [_address(pod, family)],
        "conditions": {
            "ready": regardless or (pod.ready and not pod.terminating),
            "serving": pod.ready,
            "terminating": pod.terminating,
        },
        "nodeName": node,
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
    }
    zone = zones.get(node)
    if zone:
        endpoint["zone"] = zone
    hints = _hints(service.spec.traffic_distribution, node, zone)
    return endpoint | ({"hints": hints} if hints else {})


def _hints(distribution: str | None, node: str, zone: str | None) -> dict[str, Any]:
    """For whose clients an endpoint is meant, with trafficDistribution."""
    hints: dict[str, Any] = {}
    if distribution in ("PreferClose", "PreferSameZone", "PreferSameNode") and zone:
        hints["forZones"] = [{"name": zone}]
    if distribution == "PreferSameNode":
        hints["forNodes"] = [{"name": node}]
    return hints


def _numbers(service: Service, pod: LabPod) -> tuple[int, ...]:
    """The pod's port for each of the service's; 0 where it has none of that name."""
    return tuple(_number(port, pod) for port in service.spec.ports or ())


def _number(port: ServicePort, pod: LabPod | None = None) -> int:
    target = port.port if port.target_port is None else port.target_port
    if pod is not None:
        return pod.port(target)
    return target if isinstance(target, int) else 0


class SliceController:
    """Watches services, pods and nodes and writes slices."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._services: dict[Key, Service] = {}
        self._pods: dict[Key, LabPod] = {}
        self._zones: dict[str, str] = {}
        self._written: dict[Key, dict[Key, bytes]] = {}
        """By service: its slices as they were written last."""
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Keep slices for ever."""
        async with TaskGroup() as tasks:
            tasks.spawn("slices of services", self._follow_services())
            tasks.spawn("slices of pods", self._follow_pods())
            tasks.spawn("zones of slices", self._follow_nodes())
            await tasks.failed.wait()

    async def _follow_services(self) -> None:
        async for change in follow(self._store, SERVICES, Service):
            if change.object is None:
                # The slices go with their owner.
                self._services.pop(change.key, None)
                self._written.pop(change.key, None)
            else:
                self._services[change.key] = change.object
                await self._write(change.object)

    async def _follow_pods(self) -> None:
        async for change in follow(self._store, PODS, LabPod):
            if change.object is None:
                self._pods.pop(change.key, None)
            else:
                self._pods[change.key] = change.object
            for service in list(self._services.values()):
                if service.metadata.namespace == change.key[0]:
                    await self._write(service)

    async def _follow_nodes(self) -> None:
        async for change in follow(self._store, NODES, Node):
            labels = change.object.metadata.labels if change.object is not None else None
            zone = (labels or {}).get(ZONE_LABEL, "")
            if self._zones.get(change.key[1], "") == zone:
                continue
            self._zones[change.key[1]] = zone
            for service in list(self._services.values()):
                await self._write(service)

    async def _write(self, service: Service) -> None:
        """Write the slices that changed, and remove those that are too many; one at a time, so that what is
        written last is what was seen last."""
        async with self._writing:
            await self._write_slices(service)

    async def _write_slices(self, service: Service) -> None:
        if not service.spec.selector:
            return
        pods = selected(service, self._pods.values())
        families = service.spec.ip_families or FAMILIES
        wanted = {
            (service.metadata.namespace, fields["metadata"]["name"]): encode(ENDPOINT_SLICES, fields)
            for family in families
            for fields in slice_objects(service, family, pods, self._zones)
        }
        written = self._written.setdefault((service.metadata.namespace, service.metadata.name), {})
        try:
            for key, body in wanted.items():
                if written.get(key) != body:
                    await self._put(key, body)
                    written[key] = body
            for key in [key for key in written if key not in wanted]:
                await self._remove(key)
                del written[key]
        except StoreError as error:
            log.warning("endpoint slices not written", service=service.metadata.name, reason=str(error))

    async def _put(self, key: Key, body: bytes) -> None:
        namespace, name = key
        try:
            await self._store.create(ENDPOINT_SLICES, body, namespace=namespace)
        except AlreadyExists:
            fields = msgspec.json.decode(body)
            patch = {part: fields[part] for part in ("endpoints", "ports")}
            await self._store.patch(ENDPOINT_SLICES, name, msgspec.json.encode(patch), namespace=namespace)
        except NotFound:
            # The namespace is going away, and the service with it.
            return

    async def _remove(self, key: Key) -> None:
        try:
            await self._store.delete(ENDPOINT_SLICES, key[1], namespace=key[0])
        except NotFound:
            return
