"""The write order, in one readable list, and how far each table has got.

An identity number must be known to every subject's policy before an address speaks for it, and an
endpoint is reachable only when everything that judges it stands; removals run the other way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from cilia.dataplane.bpf import Map
from cilia.dataplane.loader import REVISION_MAP, Dataplane
from cilia.dataplane.maps import listing
from cilia.dataplane.maps.accounting import Account, Accounting
from cilia.dataplane.maps.conntrack import Conntrack
from cilia.dataplane.maps.endpoints import Endpoints
from cilia.dataplane.maps.ipcache import Ipcache
from cilia.dataplane.maps.nodes import Nodes, Settings
from cilia.dataplane.maps.packing import Content
from cilia.dataplane.maps.policy import Policies
from cilia.dataplane.maps.services import LocalPod, ServiceOptions, Services
from cilia.dataplane.pool import PolicyPool
from cilia.dataplane.sweeps import Sweeps
from cilia.model.endpoint import HOST_ENDPOINT
from cilia.model.ids import EndpointId
from cilia.model.node import NodeSettings, Route
from cilia.schema import Desired
from cilia.tables.reconciler import Reconciler, Target

SERVICES_AT_ONCE = 256


class TableError(msgspec.Struct, frozen=True):
    """A row that has not reached the kernel."""

    table: str
    key: str
    error: str
    since: float


class LocalPods:
    """Pods of this node by address, for redirects that leave some alone."""

    def __init__(self, desired: Desired) -> None:
        self._entries = desired.endpoint_entries
        self.netns_cookie: Callable[[EndpointId], int] = lambda endpoint: 0
        """Cookie of a pod's network namespace; 0: not known."""

    def __call__(self, address: str) -> LocalPod | None:
        found = next((entry for entry in self._entries if address in (entry.ipv4, entry.ipv6)), None)
        return LocalPod(found.id, self.netns_cookie(found.id)) if found is not None else None


class KernelState:
    """The desired tables on their way into the kernel."""

    def __init__(
        self,
        dataplane: Dataplane,
        desired: Desired,
        routes: Target[str, Route],
        options: ServiceOptions | None = None,
    ) -> None:
        maps, layout = dataplane.maps, dataplane.layout
        self._maps = maps
        self.layout = layout
        active = maps["policy_active"].memory()
        live = active["slot"][active["revision"] != 0].tolist()
        self.pool = PolicyPool(maps["policies"], layout, live)
        dataplane.on_close.append(self.pool.close)
        self.policies = Policies(maps["policy_active"], maps[REVISION_MAP], self.pool, layout)
        self.conntrack = Conntrack(maps["conntrack"], maps["ct_quota"], layout)
        self.accounting = Accounting(maps["policy_counters"], maps["conntrack"], layout)
        self.conntrack.closing.append(self.accounting.close)
        self.settings = Settings(maps["node"], layout)
        self._options = options or ServiceOptions()
        self.service_maps = Services(maps, layout, self._options)
        self.service_maps.locate = self.local_pods = LocalPods(desired)
        self.sweeps = Sweeps(maps, layout, self.conntrack, self.service_maps, self.settings)
        self._endpoint_maps = Endpoints(maps["endpoints"], maps["ifaces"], layout)
        self._hosts: frozenset[str] = frozenset()
        self._desired = desired
        self.nodes = Reconciler(desired.node_addresses, Nodes(maps["nodes"], layout))
        self.subjects = Reconciler(desired.subjects, self.policies)
        self.ipcache = Reconciler(desired.ipcache, Ipcache(maps["ipcache"], maps["ipcache_hosts"], layout))
        self.endpoints = Reconciler(desired.endpoint_entries, self._endpoint_maps)
        self.routes = Reconciler(desired.routes, routes)
        self.services = Reconciler(desired.service_entries, self.service_maps)
        self._problem = ""
        self._problem_since = 0.0

    def apply(self, now: float) -> None:
        """Bring every change, and the retries that are due, to the kernel once. `now`: monotonic seconds,
        of CLOCK_MONOTONIC as the programs' coarse clock is."""
        for step in self.order():
            step(now)
        self.conntrack.doom(self._endpoint_maps.gone, int(now))
        self._endpoint_maps.gone.clear()

    def order(self) -> list[Callable[[float], object]]:
        """The list: one step per line, the reason beside it."""
        return [
            self.services.step_deletes,  # nothing leads to a backend that is about to go
            self.ipcache.step_deletes,  # nobody speaks for an identity that is about to be forgotten
            self.endpoints.step_deletes,  # nor receives under its policy
            self.nodes.step_updates,  # a peer must be known before its tunnel carries anything
            self.subjects.step_updates,  # entries that name an identity, in every subject ...
            self.ipcache.step_updates,  # ... before an address speaks for it
            self._finish_policies,  # now nothing refers to the identities that left
            self.routes.step_updates,  # the host's own way to a pod
            self.endpoints.step_updates,  # all that judges it stands: the endpoint goes live
            self._ask_for_host,  # and the host is held to a policy that stands
            self._look_for_skips,  # pods may have moved that a redirect leaves alone
            self._update_services,  # backends can be reached before anything leads to them
            self._follow_services,  # and packets are looked up where there is something to find
            self.subjects.step_deletes,  # no endpoint uses the subject any more
            self.nodes.step_deletes,  # no prefix is behind the node any more
            self.routes.step_deletes,
        ]

    @property
    def pending(self) -> bool:
        """Whether `apply` has something to do now."""
        return any(reconciler.pending for reconciler in self.reconcilers())

    def next_retry(self) -> float | None:
        """When a failed row wants another attempt, or one that had to wait its first (monotonic seconds), or
        None."""
        if self.services.pending:
            return 0.0
        times = [due for due in (found.next_retry() for found in self.reconcilers()) if due is not None]
        return min(times, default=None)

    def realised(self, endpoint: EndpointId) -> bool:
        """Whether an endpoint is live in the kernel under its present policy."""
        entry = self._desired.endpoint_entries.get(endpoint)
        if entry is None:
            return False
        return self.endpoints.done(endpoint) and self.subjects.done(entry.subject)

    def errors(self) -> list[TableError]:
        """Everything that has not reached the kernel, with the reason."""
        found = [
            TableError(reconciler.table.name, str(key), status.error, status.since)
            for reconciler in self.reconcilers()
            for key, status in reconciler.errors().items()
        ]
        if self._problem:
            found.append(TableError("subjects", "*", self._problem, self._problem_since))
        return found

    def prune(self) -> int:
        """Remove what a former agent left and no table holds; only when all inputs are complete.

        Same order as removals. Raises RuntimeError when a table is not complete.
        """
        order = (self.services, self.ipcache, self.endpoints, self.subjects, self.nodes, self.routes)
        removed = sum(reconciler.prune() for reconciler in order)
        self._follow_services(0.0)
        return removed

    def set_node(self, settings: NodeSettings, host_addresses: Iterable[str]) -> None:
        """Put node settings in force and make exactly these addresses the node's own. Raises OSError."""
        self.set_hosts(host_addresses)
        self.settings.write(settings)

    def set_hosts(self, addresses: Iterable[str]) -> None:
        """Make exactly these addresses the node's own. Raises OSError."""
        self._hosts = frozenset(addresses)
        self._endpoint_maps.set_hosts(self._hosts)
        self._follow_services(0.0)

    def collect(self, clock: Callable[[], float]) -> Iterator[None]:
        """Forget what expired: flows, translations, counters of entries that are gone; yields after each
        bounded step. `clock`: seconds of CLOCK_MONOTONIC."""
        self.account(int(clock()))
        yield from self.sweeps.collect(clock)
        for _ in self.accounting.prune(self.stands):
            yield

    def host_contents(self) -> list[Content[EndpointId]]:
        """What map `endpoints` has for the node's own addresses."""
        return [self._endpoint_maps.host_content(sorted(self._hosts))]

    def write_hosts(self) -> None:
        """Write the node's own addresses anew. Raises OSError."""
        self.set_hosts(self._hosts)

    def account(self, now: int) -> int:
        """Have the accounting know the endpoints as they are; returns when the counters began. Times are
        coarse monotonic seconds."""
        self.accounting.follow((row.id, row.subject) for row in self._desired.endpoint_entries)
        return self.accounting.began(now)

    def stands(self, account: Account) -> bool:
        """Whether the entry of an account is in force."""
        row = self._desired.subjects.get(account.subject)
        if row is None:
            return False
        entry = row.entries.get(account.key)
        return entry is not None and entry.cookie == account.cookie

    def map_uses(self) -> list[listing.MapUse]:
        """All maps with their sizes and use; of those too large to walk, as of the last sweep."""
        swept = {
            "services": len(self.service_maps),
            "conntrack": self.conntrack.entries,
            "service_flows": self.sweeps.service_flows.entries,
            "snat": self.sweeps.translations.entries,
            "policy_counters": self.accounting.entries,
        }
        return [listing.use(found, swept.get(name)) for name, found in self._maps.items()]

    def dump(self, name: str, limit: int = 1 << 20) -> list[dict[str, Any]]:
        """The elements of a map. Raises KeyError for a name that is none."""
        return listing.dump(self._maps[name], limit)

    def map(self, name: str) -> Map:
        """A map by name. Raises KeyError."""
        return self._maps[name]

    def reconcilers(self) -> list[Reconciler[Any, Any]]:
        """All of them."""
        return [self.nodes, self.subjects, self.ipcache, self.endpoints, self.routes, self.services]

    def _ask_for_host(self, now: float) -> None:
        """A host whose policy can't be written stays open: closed, nobody could mend it from afar."""
        judged = self._endpoint_maps.host_judged
        entry = self._desired.endpoint_entries.get(HOST_ENDPOINT)
        if judged is not None:
            self.settings.host_policy = judged and entry is not None and self.subjects.done(entry.subject)

    def _look_for_skips(self, now: float) -> None:
        for frontend in self.service_maps.moved_skips():
            self.services.mark(frontend)

    def _update_services(self, now: float) -> None:
        """As many as the time for a step allows."""
        until = time.monotonic() + self._options.step
        while self.services.step_updates(now, SERVICES_AT_ONCE) and time.monotonic() < until:
            pass

    def _follow_services(self, now: float) -> None:
        """What the programs need to know of all services together."""
        self.settings.follow_services(
            len(self.service_maps) > 0, self.service_maps.backends.serve_from(self._hosts)
        )

    def _finish_policies(self, now: float) -> None:
        try:
            self.policies.finish()
        except OSError as error:
            self._problem_since = self._problem_since if self._problem else now
            self._problem = f"entries of identities that left can't be removed: {error.strerror}"
        else:
            self._problem = ""
