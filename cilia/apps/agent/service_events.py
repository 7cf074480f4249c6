"""What is wrong with Services, redirects and host ports, told where their authors look: Events.

Every node computes the same sentences, and an Event's name depends on what it says: a cluster has one of
each. A problem is told when it has stood a while, for objects come one after the other.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import Any

import structlog

from cilia.apps.agent.statuses import EVENT_MESSAGE_LIMIT, WARNING_SECONDS, shortened
from cilia.cluster import store as cluster
from cilia.cluster.store import Resource, Store, StoreError
from cilia.kit.clock import Clock
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.schema import Desired

log = structlog.get_logger(__name__)

Key = tuple[str, str, str]
"""Kind, namespace and name."""

RESOURCES: dict[str, Resource] = {
    resource.kind: resource
    for resource in (
        cluster.SERVICES,
        cluster.PODS,
        cluster.ENDPOINT_SLICES,
        cluster.CILIUM_LOCAL_REDIRECT_POLICIES,
    )
}
"""Kinds of the cluster; what was written by hand on this node goes to the log."""
REASON = "ServiceProblem"
LOOK_SECONDS = 1.0
BATCH = 20
"""Events written in one go; the rest is next."""


class ServiceEvents:
    """Writes about `service_states`."""

    def __init__(self, store: Store, desired: Desired, clock: Clock, *, node: str) -> None:
        self._store = store
        self._states = desired.service_states
        self._cursor = desired.service_states.cursor()
        self._clock = clock
        self._node = node
        self._waiting: dict[tuple[Key, str], float] = {}
        """Since when a problem stands that was not told, monotonic seconds."""
        self._told: dict[Key, frozenset[str]] = {}

    async def run(self) -> None:
        """Tell, for ever; the store may be away for any time."""
        said = ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()
            try:
                await self.tell()
                said = ""
            except StoreError as error:
                if str(error) != said:
                    log.warning("not written yet", what="events of services", error=str(error))
                said = str(error)

    def look(self) -> None:
        """Take notice of changed states."""
        if not self._cursor.pending:
            return
        now = self._clock.monotonic()
        put, deleted = self._cursor.take()
        changed: dict[Key, tuple[str, ...]] = {row.key: row.problems for row in put}
        changed |= dict.fromkeys(deleted, ())
        before = self._waiting
        self._waiting = {item: since for item, since in before.items() if item[0] not in changed}
        for key, problems in changed.items():
            # What went and comes back is told again.
            told = self._told.pop(key, frozenset()) & set(problems)
            if told:
                self._told[key] = told
            for problem in problems:
                if problem not in told:
                    self._waiting[key, problem] = before.get((key, problem), now)

    async def tell(self) -> None:
        """Write the Events that are due. Raises StoreError; what was not written is tried again."""
        ripe = self._clock.monotonic() - WARNING_SECONDS
        due = [item for item, since in self._waiting.items() if since <= ripe][:BATCH]
        for key, problem in due:
            await self._tell(key, problem)
            if self._waiting.pop((key, problem), None) is not None:
                self._told[key] = self._told.get(key, frozenset()) | {problem}

    async def _tell(self, key: Key, problem: str) -> None:
        kind, namespace, name = key
        resource = RESOURCES.get(kind)
        if resource is None:
            log.warning("service by hand", frontend=name, problem=problem)
            return
        try:
            raw = await self._store.get(resource, name, namespace=namespace)
            meta = cluster.decode(raw, AnyObject).metadata
            body = cluster.encode(cluster.EVENTS, self._event(resource, meta, problem))
            await self._store.create(cluster.EVENTS, body, namespace=namespace)
        except (cluster.AlreadyExists, cluster.NotFound):
            return

    def _event(self, resource: Resource, meta: ObjectMeta, problem: str) -> dict[str, Any]:
        said = "\n".join((meta.uid, REASON, problem))
        stamp = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "metadata": {
                "name": f"{meta.name[:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
                "namespace": meta.namespace,
            },
            "involvedObject": {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
            },
            "type": "Warning",
            "reason": REASON,
            "message": shortened(problem, EVENT_MESSAGE_LIMIT),
            "source": {"component": "cilia-agent", "host": self._node},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
