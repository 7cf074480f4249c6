"""Keep one EndpointSlice per service and family: the ready pods its selector names.

Source: Kubernetes API reference, discovery.k8s.io/v1 EndpointSlice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from cilia.cluster.store import (
    ENDPOINT_SLICES,
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

log = structlog.get_logger(__name__)

Key = tuple[str, str]
FAMILIES = ("IPv4", "IPv6")


def selected(service: Service, pods: Iterable[LabPod]) -> list[LabPod]:
    """Return the running pods of a service, by name; a service without selector has none."""
    wanted = service.spec.selector
    if not wanted:
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


def slice_object(service: Service, family: str, pods: Iterable[LabPod]) -> dict[str, Any]:
    """Return the slice of one address family.

    A named target port is looked up in the first pod; pods that number it differently would need a slice of
    their own, which the lab does not make.
    """
    pods = list(pods)
    endpoints = [_endpoint(pod, address) for pod in pods if (address := _address(pod, family))]
    meta = service.metadata
    return {
        "metadata": {
            "name": f"{meta.name}-{family.lower()}",
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
        "ports": [_port(port, pods) for port in service.spec.ports or ()],
    }


def _address(pod: LabPod, family: str) -> str:
    for entry in pod.status.pod_ips or ():
        if (":" in entry.ip) == (family == "IPv6"):
            return entry.ip
    return ""


def _endpoint(pod: LabPod, address: str) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": pod.spec.node_name,
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
    }


def _port(port: ServicePort, pods: list[LabPod]) -> dict[str, Any]:
    target = port.port if port.target_port is None else port.target_port
    if isinstance(target, str):
        named = [
            item.container_port
            for pod in pods[:1]
            for container in pod.spec.containers
            for item in container.ports or ()
            if item.name == target
        ]
        target = named[0] if named else port.port
    return {"name": port.name, "protocol": port.protocol, "port": target}


class SliceController:
    """Watches services and pods and writes slices."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._services: dict[Key, Service] = {}
        self._pods: dict[Key, LabPod] = {}
        self._written: dict[Key, bytes] = {}

    async def run(self) -> None:
        """Keep slices for ever."""
        async with TaskGroup() as tasks:
            tasks.spawn("slices of services", self._follow_services())
            tasks.spawn("slices of pods", self._follow_pods())
            await tasks.failed.wait()

    async def _follow_services(self) -> None:
        async for change in follow(self._store, SERVICES, Service):
            if change.object is None:
                # The slices go with their owner.
                self._services.pop(change.key, None)
                for family in FAMILIES:
                    self._written.pop((change.key[0], f"{change.key[1]}-{family.lower()}"), None)
            else:
                self._services[change.key] = change.object
                await self._write(change.object, self._pods)

    async def _follow_pods(self) -> None:
        async for change in follow(self._store, PODS, LabPod):
            if change.object is None:
                self._pods.pop(change.key, None)
            else:
                self._pods[change.key] = change.object
            for service in list(self._services.values()):
                if service.metadata.namespace == change.key[0]:
                    await self._write(service, self._pods)

    async def _write(self, service: Service, pods: Mapping[Key, LabPod]) -> None:
        """Write the slices that changed."""
        if not service.spec.selector:
            return
        for family in FAMILIES:
            fields = slice_object(service, family, selected(service, pods.values()))
            body = encode(ENDPOINT_SLICES, fields)
            key = (service.metadata.namespace, fields["metadata"]["name"])
            if self._written.get(key) == body:
                continue
            try:
                await self._put(key, body)
                self._written[key] = body
            except StoreError as error:
                log.warning("endpoint slice not written", slice="/".join(key), reason=str(error))

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
