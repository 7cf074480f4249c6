"""What became of each policy, told where its author looks: conditions, node by node, and Events.

    policy_states ─► Valid        at once                              ┐
        warnings  ─► Plausible    when a warning has stood a while     ├─► one patch of the object's status,
    subjects, kernel ─► nodes.<this node>  when it is realised or not  ┘   at most one a second

Every node computes the same conditions, so before one writes it looks whether another has; nobody acts on a
status that he reads, so there is no loop. A node writes its own key of `nodes` only. A NetworkPolicy has no
status: its faults become Events, whose names depend on what they say, so that a cluster has one of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from cilia.cluster import store as cluster
from cilia.cluster.store import Resource, Store
from cilia.kit.clock import Clock
from cilia.model.policy import PolicyProblem, PolicyState
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.model.resources.cilium_policy import NodeStatus
from cilia.schema import Desired, Inputs

PolicyKey = tuple[str, str, str]

WITH_STATUS = {
    resource.kind: resource
    for resource in (
        cluster.CILIUM_NETWORK_POLICIES,
        cluster.CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
        cluster.CLUSTER_NETWORK_POLICIES,
    )
}
WITH_NODES = frozenset({"CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"})
"""Kinds whose schema has `status.nodes`."""

VALID, PLAUSIBLE = "Valid", "Plausible"
WARNING_SECONDS = 5.0
"""A warning that goes before that is of a rollout, not of the policy."""
WRITE_SECONDS = 1.0
"""Between two writes about one policy."""
LOOK_SECONDS = 1.0
"""Between two looks at what the kernel has."""
BATCH = 50
"""Policies written about in one go; the rest is next."""
WRITE_ATTEMPTS = 5
MESSAGE_LIMIT = 4_000
EVENT_MESSAGE_LIMIT = 1_000
"""An Event's message may have 1,024 characters (Kubernetes API, core/v1 Event)."""


class Condition(msgspec.Struct, frozen=True):
    """Type, truth and the sentence of a condition."""

    type: str
    true: bool
    message: str

    @property
    def status(self) -> str:
        return "True" if self.true else "False"

    @property
    def reason(self) -> str:
        if self.type == VALID:
            return "Accepted" if self.true else "Refused"
        return "NoWarnings" if self.true else "Warnings"


NOTHING_ODD = Condition(PLAUSIBLE, True, "No rule is known to miss what it names")


class NodeWord(msgspec.Struct, frozen=True, kw_only=True):
    """What this node has to say of a policy that concerns one of its endpoints."""

    ok: bool
    """All these endpoints are judged by it."""
    enforcing: bool = False
    """And what it denies is dropped, not only noted."""
    error: str = ""
    revision: int = 0
    """Policy revision with which that came about."""

    def like(self, other: NodeWord | None) -> bool:
        """Whether it says the same, but for the revision."""
        return other is not None and msgspec.structs.replace(self, revision=other.revision) == other


class Status(msgspec.Struct, frozen=True):
    """The parts of a policy's status that are ours; the rest is kept."""

    conditions: tuple[dict[str, Any], ...] | None = None
    nodes: dict[str, NodeStatus] | None = None


class Present(msgspec.Struct, frozen=True):
    """A policy object, as far as its status goes."""

    metadata: ObjectMeta
    status: Status | None = None


class Record:
    """What is known and was said of one policy."""

    __slots__ = (
        "first_seen",
        "said",
        "said_generation",
        "said_word",
        "settled",
        "state",
        "uid",
        "word",
        "written",
    )

    def __init__(self, state: PolicyState, uid: str) -> None:
        self.state = state
        self.uid = uid
        self.first_seen: dict[PolicyProblem, float] = {}
        """Since when each warning stands, monotonic seconds."""
        self.said: dict[str, Condition] = {}
        """By type."""
        self.word: NodeWord | None = None
        """Wanted below `nodes`; None: no word."""
        self.settled = False
        """`word` is about the present state."""
        self.said_word: NodeWord | None = None
        self.said_generation = 0
        """What `said_word` is about."""
        self.written: float | None = None

    def take(self, state: PolicyState, now: float) -> None:
        """A newer state."""
        self.settled = self.settled and state.generation == self.state.generation
        self.state = state
        self.first_seen = {warning: self.first_seen.get(warning, now) for warning in state.warnings}

    def conditions(self, now: float) -> tuple[Condition, ...]:
        """What the object should say: no word on plausibility while its warnings are all young."""
        found = [Condition(VALID, self.state.valid, condition_message(self.state))]
        shown = tuple(w for w, since in self.first_seen.items() if now - since >= WARNING_SECONDS)
        if shown:
            found.append(Condition(PLAUSIBLE, False, listed(shown)))
        elif not self.first_seen:
            found.append(NOTHING_ODD)
        return tuple(found)

    def next_write(self, now: float) -> float | None:
        """When there is, or will be, something to say (monotonic seconds); None: all is said."""
        if self.word_differs() or any(self.said.get(c.type) != c for c in self.conditions(now)):
            return now if self.written is None else max(now, self.written + WRITE_SECONDS)
        times = [since + WARNING_SECONDS for since in self.first_seen.values()]
        return min((due for due in times if due > now), default=None)

    def word_differs(self) -> bool:
        """Whether this node has something else to say than it said."""
        if not self.settled:
            return False
        if self.word is None:
            return self.said_word is not None
        return not self.word.like(self.said_word) or self.said_generation != self.state.generation


class StatusPublisher:
    """Writes about all policies; see the module."""

    def __init__(
        self,
        store: Store,
        inputs: Inputs,
        desired: Desired,
        clock: Clock,
        *,
        node: str,
        words: Callable[[], Mapping[PolicyKey, NodeWord | None]] | None = None,
    ) -> None:
        """`words` gives the policies that concern endpoints of this node, with None where the kernel is not
        there yet; without it nothing is said of the node."""
        self._store = store
        self._inputs = inputs
        self._clock = clock
        self._node = node
        self._words = words
        self._states = desired.policy_states.cursor()
        self._subjects = desired.subjects.cursor()
        self._records: dict[PolicyKey, Record] = {}
        self._open: dict[PolicyKey, None] = {}
        """Policies about which there is, or will be when a warning has stood, something to say."""
        self._waiting = False
        """Some policy is not realised yet."""
        self._look_at = 0.0
        self._due: float | None = None

    @property
    def pending(self) -> bool:
        """Whether `publish` has something to do now."""
        return self._states.pending or self._look_due(self._clock.monotonic())

    @property
    def due(self) -> float | None:
        """When `publish` is to be called again if nothing becomes pending before, monotonic seconds."""
        return self._due

    async def publish(self) -> None:
        """Say what is to be said now; what fails is tried again at the next call. Raises StoreError."""
        now = self._clock.monotonic()
        if self._take_states(now) or self._look_due(now):
            self._take_words(now)
        ready: list[Record] = []
        due = [self._look_at] if self._look_at > now else []
        for key in list(self._open):
            at = self._records[key].next_write(now) if key in self._records else None
            if at is None:
                del self._open[key]
            elif at <= now and len(ready) < BATCH:
                ready.append(self._records[key])
            else:
                due.append(max(at, now + WRITE_SECONDS / 2))
        # Those that fail are still open a moment later.
        due += [now + WRITE_SECONDS] if ready else []
        self._due = min(due, default=None)
        await self._write_all(ready, now)

    async def _write_all(self, records: list[Record], now: float) -> None:
        """Raises the first StoreError; one that the store refuses does not hold up the others."""
        failure: cluster.StoreError | None = None
        for record in records:
            try:
                await self._write(record, now)
                record.written = now
            except cluster.Unavailable:
                raise
            except cluster.StoreError as error:
                failure = failure or error
                # As if it were written: it is tried again later, and not in a hurry.
                record.written = now
        if failure is not None:
            raise failure

    # what is to be said

    def _take_states(self, now: float) -> bool:
        """Follow the policies; whether there were new ones."""
        rows, gone = self._states.take()
        for key in gone:
            self._records.pop(key, None)
        for state in rows:
            policy = self._inputs.policies.get(state.key)
            uid = policy.uid if policy is not None else ""
            record = self._records.get(state.key)
            if record is None or record.uid != uid:
                record = self._records[state.key] = Record(state, uid)
                self._recall(record, getattr(policy.body, "status", None) if policy is not None else None)
            record.take(state, now)
            self._open[state.key] = None
        return bool(rows)

    def _look_due(self, now: float) -> bool:
        return (self._subjects.pending or self._waiting) and now >= self._look_at

    def _take_words(self, now: float) -> None:
        self._subjects.take()
        if self._words is None:
            return
        self._look_at = now + LOOK_SECONDS
        found = self._words()
        self._waiting = False
        for key, record in self._records.items():
            if record.state.kind not in WITH_NODES:
                continue
            if key in found and found[key] is None:
                self._waiting = True
                continue
            record.word, record.settled = found.get(key), True
            if record.word is None and record.said_word is not None and not record.state.valid:
                record.word = refusal(record.state)
            if record.word_differs():
                self._open[key] = None

    def _recall(self, record: Record, status: Any) -> None:
        """Take up what the object said when it was heard: after a restart that is most of it."""
        if status is None:
            return
        for row in status.conditions or ():
            record.said[row.type] = Condition(row.type, row.status == "True", row.message or "")
        # Silence says so, too.
        record.said.setdefault(PLAUSIBLE, NOTHING_ODD)
        word = (getattr(status, "nodes", None) or {}).get(self._node)
        if word is not None:
            record.said_word = word_of(word)
            record.said_generation = record.state.generation

    # saying it

    async def _write(self, record: Record, now: float) -> None:
        state, conditions = record.state, record.conditions(now)
        word, settled = record.word, record.settled
        resource = WITH_STATUS.get(state.kind)
        if resource is None:
            await self._write_events(state, conditions)
        elif not await self._write_status(resource, state, conditions, word if settled else record.said_word):
            return
        record.said |= {condition.type: condition for condition in conditions}
        if settled:
            record.said_word, record.said_generation = word, state.generation

    async def _write_status(
        self, resource: Resource, state: PolicyState, conditions: tuple[Condition, ...], word: NodeWord | None
    ) -> bool:
        """Write what the object does not say yet, over nobody else's words; whether it now says it, which a
        newer one, of which the watch is about to tell, does not. Raises StoreError."""
        place: dict[str, Any] = {"namespace": state.namespace or None}
        for _ in range(WRITE_ATTEMPTS):
            try:
                raw = await self._store.get(resource, state.name, **place)
                present = present_of(raw)
                if state.generation and present.metadata.generation > state.generation:
                    return False
                patch = self._patch(present, conditions, word, nodes=state.kind in WITH_NODES)
                if patch:
                    body = msgspec.json.encode(patch)
                    await self._store.patch(resource, state.name, body, subresource="status", **place)
                return True
            except cluster.Conflict:
                continue
            except cluster.NotFound:
                return True
        raise cluster.Conflict(f"the status of {state.kind} {state.name} is written by others all the time")

    def _patch(
        self, present: Present, conditions: tuple[Condition, ...], word: NodeWord | None, *, nodes: bool
    ) -> dict[str, Any]:
        """The JSON merge patch that makes the object say it; empty when it does."""
        status = present.status or Status()
        change: dict[str, Any] = {}
        patch: dict[str, Any] = {}
        merged = merge(status.conditions or (), conditions, self._stamp())
        if merged is not None:
            change["conditions"] = merged
            # A list is replaced whole: not over somebody else's, written since.
            patch["metadata"] = {"resourceVersion": present.metadata.resource_version}
        said = (status.nodes or {}).get(self._node)
        if nodes and self._words is not None:
            if word is None:
                if said is not None:
                    change["nodes"] = {self._node: None}
            elif said is None or word_of(said) != word:
                change["nodes"] = {self._node: node_status(word, self._stamp())}
        if change:
            patch["status"] = change
        return patch

    async def _write_events(self, state: PolicyState, conditions: tuple[Condition, ...]) -> None:
        for condition in conditions:
            if condition.true:
                continue
            try:
                body = cluster.encode(cluster.EVENTS, self._event(state, condition))
                await self._store.create(cluster.EVENTS, body, namespace=state.namespace)
            except (cluster.AlreadyExists, cluster.NotFound):
                continue

    def _event(self, state: PolicyState, condition: Condition) -> dict[str, Any]:
        uid = self._records[state.key].uid if state.key in self._records else ""
        reason = "PolicyRefused" if condition.type == VALID else "PolicyWarning"
        said = "\n".join((uid, str(state.generation), reason, condition.message))
        stamp = self._stamp()
        return {
            "metadata": {
                "name": f"{state.name[:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
                "namespace": state.namespace,
            },
            "involvedObject": {
                "apiVersion": cluster.NETWORK_POLICIES.api_version,
                "kind": state.kind,
                "namespace": state.namespace,
                "name": state.name,
                "uid": uid,
                "resourceVersion": state.resource_version,
            },
            "type": "Warning",
            "reason": reason,
            "message": shortened(condition.message, EVENT_MESSAGE_LIMIT),
            "source": {"component": "cilia-agent", "host": self._node},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }

    def _stamp(self) -> str:
        return datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def present_of(raw: msgspec.Raw | bytes) -> Present:
    """The object as far as it makes sense: a status that makes none is written anew."""
    try:
        return cluster.decode(raw, Present)
    except cluster.Invalid:
        return Present(cluster.decode(raw, AnyObject).metadata)


def condition_message(state: PolicyState) -> str:
    """One sentence for the author of the policy."""
    return "Policy validation succeeded" if state.valid else listed(state.problems)


def listed(problems: tuple[PolicyProblem, ...]) -> str:
    """Path and sentence of each, as many as a message holds."""
    return shortened(" ".join(f"{p.path}: {p.sentence}" for p in problems), MESSAGE_LIMIT)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def refusal(state: PolicyState) -> NodeWord:
    """Of a policy that was enforced here until nobody could say any more whom it is about."""
    return NodeWord(ok=False, error=f"refused: {condition_message(state)}")


def merge(
    present: tuple[dict[str, Any], ...], wanted: tuple[Condition, ...], stamp: str
) -> list[dict[str, Any]] | None:
    """The conditions with ours brought up to date, or None when they are.

    Times change with the truth only; conditions of others stay. That all is plausible is worth saying only
    where something was not.
    """
    found = {kind: row for row in present if isinstance(kind := row.get("type"), str)}
    changed = False
    for condition in wanted:
        before = found.get(condition.type)
        if before is None and condition.type == PLAUSIBLE and condition.true:
            continue
        if before and (before.get("status"), before.get("message")) == (condition.status, condition.message):
            continue
        kept = before.get("lastTransitionTime") if before else None
        same = before is not None and before.get("status") == condition.status and kept
        found[condition.type] = {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastTransitionTime": kept if same else stamp,
        }
        changed = True
    return list(found.values()) if changed else None


def node_status(word: NodeWord, stamp: str) -> dict[str, Any]:
    """The value below `nodes`; null takes an error away that was there (RFC 7386)."""
    return {
        "ok": word.ok,
        "enforcing": word.enforcing,
        "error": word.error or None,
        "localPolicyRevision": word.revision,
        "lastUpdated": stamp,
    }


def word_of(status: NodeStatus) -> NodeWord:
    """What a value below `nodes` says."""
    return NodeWord(
        ok=bool(status.ok),
        enforcing=bool(status.enforcing),
        error=status.error or "",
        revision=status.local_policy_revision or 0,
    )
