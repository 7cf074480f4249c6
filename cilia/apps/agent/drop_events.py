"""Drops as Events of the pods they happen to, where `kubectl describe pod` shows them.

The same drops are one Event whose count grows; a restarted agent begins another, for agents may not read
Events. While the API server is away a bounded number of notices waits; the oldest are dropped and counted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from cilia.apps.agent.statuses import EVENT_MESSAGE_LIMIT, shortened
from cilia.cluster import store as cluster
from cilia.cluster.store import Store, StoreError
from cilia.hubble.cursor import Cursor
from cilia.hubble.drop_events import DEFAULT_INTERVAL, DEFAULT_REASONS, DropEvents, DropNotice, parse_reasons
from cilia.hubble.store import FlowStore
from cilia.kit.backoff import Backoff
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.schema import Inputs

log = structlog.get_logger(__name__)

REASON = "PacketDrop"
LOOK_SECONDS = 1.0
STEP = 8192
"""Rows looked at before other tasks get their turn."""
WAITING = 1000
"""Notices that wait for the API server."""
REMEMBERED = 4096
"""Events whose counts may grow."""


@dataclass(frozen=True, kw_only=True)
class DropEventSettings:
    """Which drops become Events."""

    enabled: bool = False
    interval: float = DEFAULT_INTERVAL
    """Seconds between two writes about the same drops."""
    reasons: str = DEFAULT_REASONS
    """Names of drop reasons, with blanks or commas."""
    extended: bool = False
    """Name the place in the YAML, too."""
    rate_limit: int = 20
    """Writes per second, the rest is next; 0: as many as there are."""


class Written(msgspec.Struct, frozen=True):
    """An Event there is."""

    name: str
    count: int


class DropEventWriter:
    """Follows the flows of a node and writes Events about its pods."""

    def __init__(
        self, settings: DropEventSettings, flows: FlowStore, inputs: Inputs, clock: Clock, *, node: str
    ) -> None:
        """Raises cilia.hubble.drop_events.ReasonError."""
        self._settings = settings
        self._flows = flows
        self._inputs = inputs
        self._clock = clock
        self._node = node
        self._drops = DropEvents(
            flows, parse_reasons(settings.reasons), settings.interval, extended=settings.extended
        )
        self._waiting: deque[DropNotice] = deque()
        self._written: dict[tuple[str, str, str], Written] = {}
        """By namespace, pod and message; the oldest are forgotten first."""
        self.told = 0
        """Notices written."""
        self.lost = 0
        """Notices nobody got: the API server was away too long, or their namespace is gone."""

    def numbers(self) -> dict[str, int]:
        """For a scrape: notices written, notices lost, and drops that got none for there were too many."""
        return {"told": self.told, "lost": self.lost, "suppressed": self._drops.suppressed}

    def start(self, tasks: TaskGroup, store: Store) -> None:
        """Write as long as the agent runs, where that is wanted."""
        if self._settings.enabled:
            tasks.spawn("tell drops of pods", self.run(store))

    async def run(self, store: Store) -> None:
        """For ever; the store may be away for any time."""
        backoff, again, said = Backoff(first=1.0, limit=60.0), 0.0, ""
        with Cursor(self._flows) as cursor:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                await self.look(cursor)
                if self._clock.monotonic() < again:
                    continue
                try:
                    await self.tell(store)
                    backoff.reset()
                    said = ""
                except StoreError as error:
                    again = self._clock.monotonic() + backoff.next()
                    if str(error) != said:
                        log.warning("not written yet", what="events of drops", error=str(error))
                    said = str(error)

    async def look(self, cursor: Cursor) -> None:
        """Take notice of what came."""
        while not cursor.waiting:
            arrived = cursor.step(STEP)
            for rows in self._flows.spans(arrived.first, arrived.end):
                self._drops.take(rows)
            await asyncio.sleep(0)
        self._waiting.extend(self._drops.due(self._clock.monotonic()))
        while len(self._waiting) > WAITING:
            self._waiting.popleft()
            self.lost += 1

    async def tell(self, store: Store) -> None:
        """Write some Events. Raises StoreError; what was not written is tried again."""
        # Called once in LOOK_SECONDS.
        for _ in range(min(self._settings.rate_limit or WAITING, len(self._waiting))):
            notice = self._waiting[0]
            if await self._write(store, notice):
                self.told += 1
            else:
                self.lost += 1
            # In the meantime it may have been dropped for want of room.
            if self._waiting and self._waiting[0] is notice:
                self._waiting.popleft()

    async def _write(self, store: Store, notice: DropNotice) -> bool:
        """Whether there is an Event of it now."""
        key = (notice.namespace, notice.pod, notice.message)
        before = self._written.pop(key, None)
        if before is not None and await self._add(store, before, notice):
            self._written[key] = Written(before.name, before.count + notice.count)
            return True
        event = self._event(notice)
        body = cluster.encode(cluster.EVENTS, event)
        try:
            await store.create(cluster.EVENTS, body, namespace=notice.namespace)
        except cluster.AlreadyExists:
            # Written before, and the answer was lost.
            pass
        except (cluster.NotFound, cluster.Invalid) as error:
            # Its namespace is going, or it can't be said: waiting would not help.
            log.debug("no event", pod=f"{notice.namespace}/{notice.pod}", error=str(error))
            return False
        self._written[key] = Written(event["metadata"]["name"], notice.count)
        if len(self._written) > REMEMBERED:
            del self._written[next(iter(self._written))]
        return True

    async def _add(self, store: Store, before: Written, notice: DropNotice) -> bool:
        """Let the count grow; whether the Event is still there."""
        fields = {"count": before.count + notice.count, "lastTimestamp": stamp(notice.last)}
        patch = msgspec.json.encode(fields)
        try:
            await store.patch(cluster.EVENTS, before.name, patch, namespace=notice.namespace)
        except (cluster.NotFound, cluster.Invalid):
            return False
        except StoreError:
            self._written[notice.namespace, notice.pod, notice.message] = before
            raise
        return True

    def _event(self, notice: DropNotice) -> dict[str, Any]:
        pod = self._inputs.pods.get((notice.namespace, notice.pod))
        uid = pod.uid if pod is not None else ""
        said = "\n".join((uid, REASON, self._node, str(notice.first), notice.message))
        return {
            "metadata": {
                "name": f"{notice.pod[:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
                "namespace": notice.namespace,
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": notice.namespace,
                "name": notice.pod,
                "uid": uid,
            },
            "type": "Warning",
            "reason": REASON,
            "message": shortened(notice.message, EVENT_MESSAGE_LIMIT),
            "source": {"component": "cilia-agent", "host": self._node},
            "firstTimestamp": stamp(notice.first),
            "lastTimestamp": stamp(notice.last),
            "count": notice.count,
        }


def stamp(wall: int) -> str:
    """A time as the API has it; nanoseconds since the Unix epoch."""
    return datetime.fromtimestamp(wall / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
