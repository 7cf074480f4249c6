"""Give every pod without a node the one with the fewest pods that its selector allows."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog

from cilia.cluster.store import NODES, PODS, NotFound, Store, StoreError
from cilia.kit.tasks import TaskGroup
from cilia.lab.follow import follow
from cilia.lab.objects import LabPod
from cilia.model.resources.core import Node

log = structlog.get_logger(__name__)

Key = tuple[str, str]
FINISHED = ("Succeeded", "Failed")


def choose(pod: LabPod, nodes: Mapping[str, Node], pods: Mapping[Key, LabPod]) -> str | None:
    """Return the node for a pod; None when none is ready and fits. Ties go to the first by name."""
    load = dict.fromkeys(sorted(name for name, node in nodes.items() if fits(pod, node)), 0)
    for other in pods.values():
        if other.spec.node_name in load and other.status.phase not in FINISHED:
            load[other.spec.node_name] += 1
    return min(load, key=lambda name: load[name], default=None)


def fits(pod: LabPod, node: Node) -> bool:
    """Whether a node is ready and has all labels the pod asks for."""
    labels = node.metadata.labels or {}
    wanted = pod.spec.node_selector or {}
    ready = any(item.type == "Ready" and item.status == "True" for item in node.status.conditions or ())
    return ready and not node.spec.unschedulable and wanted.items() <= labels.items()


class Scheduler:
    """Watches nodes and pods and binds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nodes: dict[str, Node] = {}
        self._pods: dict[Key, LabPod] = {}

    async def run(self) -> None:
        """Schedule for ever."""
        async with TaskGroup() as tasks:
            tasks.spawn("scheduler nodes", self._follow_nodes())
            tasks.spawn("scheduler pods", self._follow_pods())
            await tasks.failed.wait()

    async def _follow_nodes(self) -> None:
        async for change in follow(self._store, NODES, Node):
            if change.object is None:
                self._nodes.pop(change.key[1], None)
                continue
            self._nodes[change.key[1]] = change.object
            for pod in list(self._pods.values()):
                await self._schedule(pod)

    async def _follow_pods(self) -> None:
        async for change in follow(self._store, PODS, LabPod):
            if change.object is None:
                self._pods.pop(change.key, None)
            else:
                self._pods[change.key] = change.object
                await self._schedule(change.object)

    async def _schedule(self, pod: LabPod) -> None:
        if pod.spec.node_name or pod.metadata.deletion_timestamp:
            return
        node = choose(pod, self._nodes, self._pods)
        if node is None:
            return
        spec = msgspec.structs.replace(pod.spec, node_name=node)
        self._pods[pod.key] = msgspec.structs.replace(pod, spec=spec)
        patch = {"metadata": {"uid": pod.metadata.uid}, "spec": {"nodeName": node}}
        try:
            await self._store.patch(
                PODS, pod.metadata.name, msgspec.json.encode(patch), namespace=pod.metadata.namespace
            )
        except NotFound:
            return
        except StoreError as error:
            self._pods[pod.key] = pod
            log.warning("pod not bound", pod="/".join(pod.key), node=node, reason=str(error))
