"""One node's kubelet: watches the pods bound to its node and makes what they ask for true.

Each pod has one worker task, which compares what is wanted (the Pod as last seen) with what runs (its sandbox
record) and takes one step at a time; failures are retried with growing pauses and told as Events.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from cilia.cluster.store import (
    EVENTS,
    NODES,
    PODS,
    AlreadyExists,
    Conflict,
    NotFound,
    Preconditions,
    Store,
    StoreError,
    encode,
)
from cilia.kit.backoff import Backoff
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.lab import cni, objects, readiness, records, sandbox
from cilia.lab.follow import follow
from cilia.lab.objects import LabPod
from cilia.lab.plan import LabPlan, NodePlan
from cilia.lab.records import PodRecord
from cilia.lab.sandbox import SandboxError

log = structlog.get_logger(__name__)

Key = tuple[str, str]
NETWORK_POLL = 0.02
"""Seconds between two looks for the CNI configuration while the agent starts."""
NETWORK_POLL_SLOW = 1.0
"""The same once it is there."""


END_POLL = 0.02
"""Seconds between two looks at a pod that ends."""


class Kubelet:
    """See the module. `group` is the node's cgroup."""

    def __init__(self, store: Store, plan: LabPlan, node: NodePlan, group: Path, clock: Clock) -> None:
        self._store = store
        self._plan = plan
        self._node = node
        self._group = group
        self._clock = clock
        self._wanted: dict[Key, LabPod] = {}
        self._running: dict[Key, PodRecord] = {}
        self._workers: dict[Key, asyncio.Task[None]] = {}
        self._probes: dict[Key, asyncio.Task[None]] = {}
        self._tasks = TaskGroup()
        self.network_ready = asyncio.Event()

    async def run(self) -> None:
        """Register the node and serve its pods for ever."""
        async with self._tasks:
            self._tasks.spawn(f"kubelet {self._node.name} network", self._watch_network())
            self._tasks.spawn(f"kubelet {self._node.name} pods", self._follow())
            await self._tasks.failed.wait()

    async def register(self) -> None:
        """Create the Node object; it turns ready with the agent."""
        node = objects.node_object(self._node, self._clock, ready=False)
        try:
            await self._store.create(NODES, encode(NODES, node))
        except AlreadyExists:
            await self._tell_node(ready=False)

    async def check(self, namespace: str, name: str) -> None:
        """Call CNI CHECK for a running pod; raises CniError."""
        record = self._running.get((namespace, name))
        if record is None:
            raise cni.CniError(f"no pod {namespace}/{name} runs on {self._node.name}")
        await cni.check(self._node, record)

    async def _follow(self) -> None:
        async for change in follow(self._store, PODS, LabPod):
            pod = change.object
            if pod is not None and pod.spec.node_name == self._node.name:
                self._wanted[change.key] = pod
            elif self._wanted.pop(change.key, None) is None:
                continue
            self._wake(change.key)

    def _wake(self, key: Key) -> None:
        if key not in self._workers:
            name = f"kubelet {self._node.name} pod {'/'.join(key)}"
            self._workers[key] = self._tasks.spawn(name, self._work(key))

    async def _work(self, key: Key) -> None:
        backoff = Backoff(first=0.1, limit=5.0)
        try:
            while True:
                try:
                    if not await self._step(key):
                        return
                    backoff.reset()
                except (SandboxError, cni.CniError, StoreError) as error:
                    await self._tell_failure(key, error)
                    await asyncio.sleep(backoff.next())
        finally:
            del self._workers[key]

    async def _step(self, key: Key) -> bool:
        """Take one step towards what is wanted; False when there is nothing left to do."""
        pod = self._wanted.get(key)
        record = self._running.get(key)
        leaving = pod is not None and pod.terminating
        if record is not None and self._must_stop(pod, record):
            if pod is not None and leaving:
                await self._let_end(key, pod, record)
            self._end_probe(key)
            await sandbox.stop(record, self._node, self._pod_group(record))
            del self._running[key]
            return True
        if pod is None:
            return False
        if leaving:
            await self._forget(pod)
            return False
        if record is None and pod.status.phase not in ("Succeeded", "Failed"):
            await self._start(key, pod)
            return True
        return False

    def _must_stop(self, pod: LabPod | None, record: PodRecord) -> bool:
        if pod is None or pod.metadata.uid != record.uid or pod.terminating:
            return True
        return not records.alive(record)

    async def _start(self, key: Key, pod: LabPod) -> None:
        if pod.spec.host_network:
            message = "the lab can't run pods in the host's network: leave out hostNetwork"
            await self._tell_status(
                pod, objects.stopped_status("Failed", "HostNetwork", message, self._clock)
            )
            return
        workload = objects.workload(pod)
        record = sandbox.prepare(self._plan, self._node, workload)
        record = await sandbox.start(record, self._node, workload, self._pod_group(record))
        self._running[key] = record
        self._watch_process(key, record)
        ready = pod.probe is None
        status = objects.running_status(pod, record, self._node, self._clock, ready=ready)
        await self._tell_status(pod, status)
        if pod.probe is not None:
            name = f"kubelet {self._node.name} probe {'/'.join(key)}"
            self._probes[key] = self._tasks.spawn(name, self._probe(key, pod.probe, record))

    async def _probe(self, key: Key, probe: objects.Probe, record: PodRecord) -> None:
        """Tell whenever the pod turns ready or unready, as long as it runs."""
        async for ready in readiness.follow(probe, record, self._node.netns, self._port_of(key)):
            pod = self._wanted.get(key)
            if pod is None or pod.metadata.uid != record.uid:
                return
            try:
                await self._tell_status(pod, objects.readiness_status(pod, self._clock, ready=ready))
            except StoreError as error:
                log.warning("readiness not written", pod="/".join(key), reason=str(error))

    def _port_of(self, key: Key) -> Callable[[int | str], int]:
        def port(wanted: int | str) -> int:
            pod = self._wanted.get(key)
            return pod.port(wanted) if pod is not None else 0

        return port

    def _end_probe(self, key: Key) -> None:
        probe = self._probes.pop(key, None)
        if probe is not None:
            probe.cancel()

    async def _let_end(self, key: Key, pod: LabPod, record: PodRecord) -> None:
        """Give a pod the time it has to end: first its pause, in which it goes on as before, then the signal.

        Returns when it has ended or its grace is over; at once when the pod is gone from the API.
        """
        grace = pod.metadata.deletion_grace_period_seconds or 0
        loop = asyncio.get_running_loop()
        deadline, signal_at = loop.time() + grace, loop.time() + min(pod.pause, grace)
        signalled = False
        while records.alive(record) and loop.time() < deadline:
            present = self._wanted.get(key)
            if present is None or present.metadata.uid != record.uid:
                return
            if not signalled and loop.time() >= signal_at:
                sandbox.ask_to_end(record)
                signalled = True
            await asyncio.sleep(END_POLL)

    def _watch_process(self, key: Key, record: PodRecord) -> None:
        """Wake the pod's worker when its first process ends."""
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(record.pid)
        except ProcessLookupError:
            loop.call_soon(self._wake, key)
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._wake(key)

        loop.add_reader(descriptor, ended)

    def _pod_group(self, record: PodRecord) -> Path:
        return self._group / "pods" / record.sandbox[:12]

    async def _forget(self, pod: LabPod) -> None:
        """Complete the deletion of a pod, as a kubelet does when its containers are gone.

        A pod in a final phase has no grace period to wait for.
        """
        ended = objects.stopped_status("Succeeded", "Deleted", "the pod was deleted", self._clock)
        await self._tell_status(pod, ended)
        name, namespace = pod.metadata.name, pod.metadata.namespace
        try:
            await self._store.delete(
                PODS, name, namespace=namespace, preconditions=Preconditions(uid=pod.metadata.uid)
            )
        except (NotFound, Conflict):
            return

    async def _tell_status(self, pod: LabPod, status: dict[str, object]) -> None:
        patch = msgspec.json.encode({"metadata": {"uid": pod.metadata.uid}, "status": status})
        try:
            await self._store.patch(
                PODS, pod.metadata.name, patch, namespace=pod.metadata.namespace, subresource="status"
            )
        except (NotFound, Conflict):
            # Deleted, or deleted and made again, in between: the watch will tell.
            return

    async def _tell_failure(self, key: Key, error: Exception) -> None:
        pod = self._wanted.get(key)
        log.warning("pod step failed", node=self._node.name, pod="/".join(key), reason=str(error))
        if pod is None or pod.terminating:
            return
        reason = "FailedCreatePodSandBox"
        event = objects.event_object(pod, self._node.name, reason, str(error), self._clock)
        try:
            await self._store.create(EVENTS, encode(EVENTS, event), namespace=pod.metadata.namespace)
        except StoreError as failure:
            log.warning("event not written", reason=str(failure))

    async def _watch_network(self) -> None:
        """Keep the Node's Ready condition true exactly while a CNI configuration is there."""
        told = False
        while True:
            ready = cni.find_config(self._node) is not None
            if ready != told:
                try:
                    await self._tell_node(ready=ready)
                    told = ready
                except StoreError as error:
                    log.warning("node status not written", node=self._node.name, reason=str(error))
            if ready:
                self.network_ready.set()
            else:
                self.network_ready.clear()
            await asyncio.sleep(NETWORK_POLL_SLOW if ready and told else NETWORK_POLL)

    async def _tell_node(self, *, ready: bool) -> None:
        if self._plan.source_dir:
            # A directory of YAML has no Node objects but those its owner writes.
            return
        status = objects.node_object(self._node, self._clock, ready=ready)["status"]
        patch = msgspec.json.encode({"status": status})
        await self._store.patch(NODES, self._node.name, patch, subresource="status")
