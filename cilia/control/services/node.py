"""The services node of the control graph.

    services, endpoint_slices, ─┐                       ┌─► service_entries
    pods, redirects, ───────────┼─► drafts ─► claims ───┼─► service_states
    local_services, nodes ──────┘  one an object        └─► health_checks

A change makes the draft of the objects it is about anew, and judges what others ask for, too. The rows equal
those computed from scratch, whatever came first. An object over which we fail costs itself, and says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import msgspec

from cilia.control.nodes import known_nodes
from cilia.control.services import frontends, hostports, redirects, standalone, written
from cilia.control.services.choice import Readings
from cilia.control.services.claims import Claims
from cilia.control.services.drafts import (
    POD,
    REDIRECT,
    SERVICE,
    SLICE,
    STANDALONE,
    Draft,
    Owner,
    named,
    owner_of,
)
from cilia.control.services.settings import ServiceSettings
from cilia.control.services.standing import Standing, standing
from cilia.model.node import Node
from cilia.model.service import Frontend, FrontendKind, HealthCheck, ServiceEntry, ServiceState
from cilia.schema import Desired, Inputs
from cilia.tables.table import Cursor

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")

Name = tuple[str, str]
"""Namespace and name."""

MAX_PROBLEMS = 20
"""So many sentences are told of one object: whoever wrote a thousand bad addresses knows by then."""

MANY_SLICES = 4
"""From here on reading them again costs more than keeping what they said."""

RANKS = {
    FrontendKind.CLUSTER_IP: 1,
    FrontendKind.NODE_PORT: 2,
    FrontendKind.LOAD_BALANCER: 3,
    FrontendKind.EXTERNAL_IP: 4,
    FrontendKind.HOST_PORT: 5,
    FrontendKind.LOCAL_REDIRECT: 6,
    FrontendKind.STANDALONE: 7,
}
"""Who has an address that several ask for: whom the cluster gave it before those who wrote it themselves.
A redirect of a Service comes before the Service."""

OF_THE_NODE = (FrontendKind.NODE_PORT, FrontendKind.HOST_PORT)

FIELDS = {
    FrontendKind.CLUSTER_IP: "spec.clusterIPs",
    FrontendKind.NODE_PORT: "spec.ports[].nodePort",
    FrontendKind.LOAD_BALANCER: "status.loadBalancer.ingress",
    FrontendKind.EXTERNAL_IP: "spec.externalIPs",
    FrontendKind.HOST_PORT: "spec.containers[].ports[].hostPort",
    FrontendKind.LOCAL_REDIRECT: "spec.redirectFrontend",
    FrontendKind.STANDALONE: "frontend",
}


class ServicesNode:
    """services, endpoint_slices, pods, redirects, local_services, nodes -> service_entries, service_states,
    health_checks."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        *,
        node: str,
        settings: ServiceSettings | None = None,
        own: Node | None = None,
    ) -> None:
        """`node`: name of this one; `own`: what it knows of itself."""
        self._inputs = inputs
        self._desired = desired
        self._node = node
        self._own = own
        self._settings = settings or ServiceSettings()
        self._standing = Standing(name=node)
        self._drafts: dict[Owner, Draft] = {}
        self._frontends = Claims(desired.service_entries, owner_of, self._rank)
        self._checks = Claims(desired.health_checks, _owner_of_check, self._age)
        self._service_of: dict[Name, Name] = {}
        """The Service of each slice."""
        self._readings: dict[Name, Readings] = {}
        """What slices say, of Services that have many."""
        self._watched: set[Name] = set()
        """Services of redirects."""
        self._by_hand: dict[str, Frontend] = {}
        """Frontends written by hand, by their text."""
        self._orphans: set[Owner] = set()
        """Slices without a Service."""
        self._all_services = False
        """Whether all Services were known at the last step."""
        self._nodes = inputs.nodes.cursor()
        self._services = inputs.services.cursor()
        self._slices = inputs.endpoint_slices.cursor()
        self._pods = inputs.pods.cursor()
        self._redirects = inputs.redirects.cursor()
        self._local = inputs.local_services.cursor()
        self._unsaid = True
        self._dirty: set[Owner] = set()
        """Objects whose draft is to be made anew."""
        self._drafted: set[Owner] = set()
        """Those of which it is, and nobody was told yet."""

    def step(self) -> None:
        """Bring the rows up to date with the inputs."""
        self.advance()
        drafted, self._drafted = self._drafted, set()
        if not drafted:
            return
        for owner in drafted | self._frontends.settle() | self._checks.settle():
            self._tell(owner)

    def advance(self, limit: int | None = None) -> bool:
        """Do a part of the next step's work, that of so many objects; whether more is left. The rows mean
        nothing before the step."""
        if not self._settings.enabled:
            return False
        if limit is None or not self._dirty:
            self._take()
        for owner in list(itertools.islice(self._dirty, limit)):
            self._dirty.discard(owner)
            self._redraft(owner)
            self._drafted.add(owner)
        return bool(self._dirty)

    # what changed

    def _take(self) -> None:
        self._dirty |= self._take_standing()
        self._dirty |= self._take_redirects()
        self._dirty |= self._take_services()
        self._dirty |= self._take_pods()
        self._dirty |= self._take_local()

    def _take_standing(self) -> set[Owner]:
        """Everybody, when this node has other addresses or another zone; when labels, who asks for them."""
        if not (self._nodes.pending or self._unsaid):
            return set()
        self._nodes.take()
        self._unsaid = False
        found = standing(self._node, known_nodes(self._inputs.nodes, self._own), self._settings)
        before, self._standing = self._standing, found
        if found == before:
            return set()
        if msgspec.structs.replace(found, labels=before.labels) != before:
            return set(self._drafts)
        choosy = (row for row in self._inputs.services if written.chooses_nodes(row.annotations))
        return {(SERVICE, row.namespace, row.name) for row in choosy}

    def _take_redirects(self) -> set[Owner]:
        changed = _changed(self._redirects, lambda row: (row.namespace, row.name))
        if changed:
            self._watched = {(row.namespace, row.service) for row in self._inputs.redirects if row.service}
        return {(REDIRECT, *name) for name in changed}

    def _take_services(self) -> set[Owner]:
        """Services that changed or whose slices did, redirects of them, slices that lost or got theirs."""
        names = set(_changed(self._services, lambda row: (row.namespace, row.name)))
        for key in _changed(self._slices, lambda row: (row.namespace, row.name)):
            names |= self._follow(key)
        dirty: set[Owner] = {(SERVICE, *name) for name in names}
        if not names.isdisjoint(self._watched):
            dirty |= {
                (REDIRECT, row.namespace, row.name)
                for row in self._inputs.redirects
                if (row.namespace, row.service) in names
            }
        return dirty | self._take_orphans(names)

    def _follow(self, key: Name) -> set[Name]:
        """Which Services a slice belonged to, and belongs to."""
        row = self._inputs.endpoint_slices.get(key)
        before = self._service_of.pop(key, None)
        found = {before} if before is not None else set()
        if row is not None:
            service = self._service_of[key] = (row.namespace, row.service)
            found.add(service)
        return found

    def _take_orphans(self, names: set[Name]) -> set[Owner]:
        """Slices of which it may have changed whether there is their Service. Nothing is said about them
        before all Services are known."""
        synced, before = self._inputs.services.synced, self._all_services
        self._all_services = synced
        if synced is not before:
            names = {*names, *self._service_of.values()}
        missing = (name for name in names if name not in self._inputs.services)
        slices = (row for name in missing for row in self._inputs.endpoint_slices.by("service", name))
        return self._orphans | {(SLICE, row.namespace, row.name) for row in slices}

    def _take_pods(self) -> set[Owner]:
        """Pods with host ports, redirects of their namespaces, and what is only for backends of this node."""
        changed = _changed(self._pods, lambda row: (row.namespace, row.name))
        if not changed:
            return set()
        dirty: set[Owner] = {(POD, *name) for name in changed}
        namespaces = {namespace for namespace, _ in changed}
        dirty |= {
            (REDIRECT, row.namespace, row.name)
            for row in self._inputs.redirects
            if row.namespace in namespaces
        }
        return dirty | {_standalone(row.frontend) for row in self._inputs.local_services if row.local_only}

    def _take_local(self) -> set[Owner]:
        changed = {str(frontend): frontend for frontend in _changed(self._local, lambda row: row.frontend)}
        self._by_hand |= changed
        return {_standalone(frontend) for frontend in changed.values()}

    # what it means

    def _redraft(self, owner: Owner) -> None:
        draft, before = self._draft(owner), self._drafts.pop(owner, None) or Draft()
        if draft is not None:
            self._drafts[owner] = draft
        now = draft or Draft()
        self._frontends.replace(
            owner, [entry.frontend for entry in before.entries], {row.frontend: row for row in now.entries}
        )
        if before.health != now.health or now.health is not None:
            self._checks.replace(owner, _ports(before), {row.port: row for row in (now.health,) if row})

    def _draft(self, owner: Owner) -> Draft | None:
        """What an object asks for now; None: there is no such object, or it asks for nothing here."""
        try:
            return self._draft_any(owner)
        except Exception as error:
            # A fault of ours, which one object has brought to light: it must not cost the others.
            why = f"{type(error).__name__}: {error}"
            return Draft(problems=(f"it can't be served ({why}): change the object, and please report it",))

    def _draft_any(self, owner: Owner) -> Draft | None:
        kind, namespace, name = owner
        match kind:
            case "Service":
                return self._draft_service((namespace, name))
            case "Pod":
                pod = self._inputs.pods.get((namespace, name))
                wants = pod is not None and hostports.wants_any(pod)
                return hostports.draft(pod, self._standing, self._settings) if pod and wants else None
            case "CiliumLocalRedirectPolicy":
                return self._draft_redirect((namespace, name))
            case "EndpointSlice":
                return self._draft_orphan(owner)
            case _:
                return self._draft_standalone(name)

    def _draft_service(self, name: Name) -> Draft | None:
        row = self._inputs.services.get(name)
        before = self._readings.pop(name, None)
        if row is None or not frontends.is_served(row, self._settings):
            return None
        slices = self._inputs.endpoint_slices.by("service", name)
        readings = before or Readings()
        draft = frontends.draft(row, slices, self._standing, self._settings, readings)
        if len(slices) >= MANY_SLICES:
            readings.turn()
            self._readings[name] = readings
        return draft

    def _draft_redirect(self, name: Name) -> Draft | None:
        row = self._inputs.redirects.get(name)
        if row is None:
            return None
        service = self._inputs.services.get((row.namespace, row.service)) if row.service else None
        return redirects.draft(row, service, self._inputs.pods, self._standing, self._settings)

    def _draft_orphan(self, owner: Owner) -> Draft | None:
        self._orphans.discard(owner)
        _, namespace, name = owner
        row = self._inputs.endpoint_slices.get((namespace, name))
        if row is None or not self._all_services or (namespace, row.service) in self._inputs.services:
            return None
        self._orphans.add(owner)
        return Draft(
            problems=(
                f"metadata.labels[kubernetes.io/service-name]: there is no Service "
                f"{namespace}/{row.service}; create it or delete the slice",
            )
        )

    def _draft_standalone(self, name: str) -> Draft | None:
        row = self._inputs.local_services.get(self._by_hand[name])
        if row is None:
            del self._by_hand[name]
            return None
        pods = {address for pod in self._inputs.pods for address in pod.addresses}
        return standalone.draft(row, pods | {*self._standing.addresses}, self._standing, self._settings)

    # who has it

    def _rank(self, owner: Owner, entry: ServiceEntry) -> tuple[int, str]:
        caught = entry.kind is FrontendKind.LOCAL_REDIRECT and not entry.loose
        return 0 if caught else RANKS[entry.kind], self._drafts[owner].age

    def _age(self, owner: Owner, check: HealthCheck) -> str:
        return self._drafts[owner].age

    def _tell(self, owner: Owner) -> None:
        draft = self._drafts.get(owner)
        if draft is None:
            self._desired.service_states.delete(owner)
            return
        lost = self._frontends.lost(owner, [entry.frontend for entry in draft.entries])
        problems = [
            *draft.problems,
            *(_lost(mine, theirs) for mine, theirs in lost if not _is_caught(theirs)),
        ]
        problems += (
            f"spec.healthCheckNodePort: {mine.port} is that of {named(_owner_of_check(theirs))}, which comes "
            f"first; give one of both another"
            for mine, theirs in self._checks.lost(owner, _ports(draft))
        )
        kind, namespace, name = owner
        self._desired.service_states.put(
            ServiceState(kind=kind, namespace=namespace, name=name, problems=_brief(problems))
        )


def _brief(problems: Iterable[str]) -> tuple[str, ...]:
    """Each once, and no more than anybody reads."""
    told = tuple(dict.fromkeys(problems))
    if len(told) <= MAX_PROBLEMS:
        return told
    return (*told[:MAX_PROBLEMS], f"and {len(told) - MAX_PROBLEMS} more")


def _changed(cursor: Cursor[K, R], key: Callable[[R], K]) -> list[K]:
    rows, deleted = cursor.take()
    return [*map(key, rows), *deleted]


def _standalone(frontend: Frontend) -> Owner:
    return STANDALONE, "", str(frontend)


def _owner_of_check(row: HealthCheck) -> Owner:
    return SERVICE, row.namespace, row.name


def _ports(draft: Draft) -> list[int]:
    return [draft.health.port] if draft.health is not None else []


def _is_caught(entry: ServiceEntry) -> bool:
    """Whether a redirect has it on purpose."""
    return entry.kind is FrontendKind.LOCAL_REDIRECT and not entry.loose


def _lost(mine: ServiceEntry, theirs: ServiceEntry) -> str:
    """What is told to who lost a frontend; a port of the node is lost at all addresses alike."""
    port = f"{mine.frontend.port}/{mine.frontend.protocol.name}"
    what = port if mine.kind is theirs.kind and mine.kind in OF_THE_NODE else str(mine.frontend)
    return (
        f"{FIELDS[mine.kind]}: {what} is {theirs.kind.value} of {named(owner_of(theirs))}, which comes "
        f"first; it has no effect here"
    )
