"""Answers from the agent's tables: the part of `Backend` that needs nothing else.

The agent's composition root derives from it and adds what isn't in tables: status, CNI, kernel maps,
settings, metrics, and how far the kernel has got.
"""

from __future__ import annotations

import asyncio
import ipaddress

from cilia.api import service_views, views
from cilia.api.backend import ApiError, EndpointReference, not_found
from cilia.api.types import (
    CookieView,
    EndpointPolicy,
    EndpointView,
    IdentityView,
    IpEntry,
    NodeView,
    PolicyList,
    ServiceList,
    ServiceView,
)
from cilia.control.services.drafts import Owner, owner_of
from cilia.model.endpoint import Endpoint
from cilia.model.ids import Cookie, EndpointId, IdentityId
from cilia.model.policy import CookieRow, SubjectPolicy
from cilia.model.service import Frontend, Protocol, ServiceEntry
from cilia.schema import Desired, Inputs

SERVICES_PER_TURN = 100
"""Frontends looked at before others get a turn."""


class TableBackend:
    """Reads `Inputs` and `Desired`; writes nothing."""

    def __init__(self, inputs: Inputs, desired: Desired, node: str) -> None:
        self.inputs = inputs
        self.desired = desired
        self.node = node

    def computed_revision(self) -> int:
        """Newest policy revision computed. The agent may know better than the rows."""
        return max((row.revision for row in self.desired.subjects), default=0)

    def realized_revision(self) -> int:
        """Newest policy revision that all endpoints enforce; the agent asks its reconcilers."""
        return self.computed_revision()

    def in_audit(self) -> bool:
        """Whether the whole node only notes what policies deny."""
        return False

    def problem(self, endpoint: Endpoint) -> str:
        """Why an endpoint is not enforced as it should be; the agent asks its reconcilers."""
        return ""

    async def endpoints(self) -> list[EndpointView]:
        rows = sorted(self.desired.endpoints, key=lambda row: row.id)
        return [self._view(row) for row in rows]

    async def endpoint(self, reference: EndpointReference) -> EndpointView:
        return self._view(self._endpoint(reference))

    async def endpoint_policy(self, reference: EndpointReference) -> EndpointPolicy:
        row = self._endpoint(reference)
        policy = self._policy(row)
        if policy is None:
            raise ApiError(409, f"Endpoint {row.id} is {row.state} and has no policy yet; try again.")
        return views.endpoint_policy(row, policy, self._labels, self._rules)

    async def identities(self) -> list[IdentityView]:
        return [views.identity_view(row) for row in sorted(self.desired.identities, key=lambda row: row.id)]

    async def identity(self, number: int) -> IdentityView:
        row = self.desired.identities.get(IdentityId(number))
        if row is None:
            raise not_found("identity", number, "`cilia identity list`")
        return views.identity_view(row)

    async def addresses(self) -> list[IpEntry]:
        return [views.ip_entry(row) for row in sorted(self.desired.ipcache, key=lambda row: row.prefix)]

    async def policies(self) -> PolicyList:
        rows = sorted(self.inputs.policies, key=lambda row: row.key)
        return PolicyList(
            revision=self.computed_revision(),
            realized=self.realized_revision(),
            policies=tuple(views.policy_view(row, self.desired.policy_states.get(row.key)) for row in rows),
        )

    async def cookie(self, number: int) -> CookieView:
        row = self._rules(Cookie(number))
        if row is None:
            raise not_found("rule cookie", number, "`cilia endpoint policy`")
        return views.cookie_view(row)

    async def services(self) -> ServiceList:
        found: list[ServiceView] = []
        for entry in await asyncio.to_thread(sorted, list(self.desired.service_entries), key=_by_owner):
            found.append(self._service(entry))
            if not len(found) % SERVICES_PER_TURN:
                await asyncio.sleep(0)
        wrong = [row for row in self.desired.service_states if row.problems]
        wrong.sort(key=lambda row: row.key)
        return ServiceList(services=tuple(found), problems=tuple(map(service_views.problem_view, wrong)))

    async def service(self, reference: str) -> ServiceList:
        entries = self._at(reference) if ":" in reference else self._named(reference)
        owners = {owner_of(entry) for entry in entries} or self._owners(reference)
        states = [state for key in sorted(owners) if (state := self.desired.service_states.get(key))]
        if not entries and not states:
            raise not_found("service", reference[:100], "`cilia service list`")
        return ServiceList(
            services=tuple(map(self._service, sorted(entries, key=_by_owner))),
            problems=tuple(service_views.problem_view(state) for state in states if state.problems),
        )

    def number(self, frontend: Frontend) -> int:
        """The kernel's number of a frontend; the agent asks its reconcilers."""
        return 0

    def realization(self, frontend: Frontend) -> tuple[str, str]:
        """How far a frontend is; the agent asks its reconcilers."""
        return "realized", ""

    def pod(self, address: str) -> str:
        """namespace/name of the pod at an address."""
        row = self.desired.ipcache.get(f"{address}/128" if ":" in address else f"{address}/32")
        return f"{row.namespace}/{row.pod}" if row is not None and row.pod else ""

    async def nodes(self) -> list[NodeView]:
        rows = sorted(self.inputs.nodes, key=lambda row: row.name)
        return [views.node_view(row, self.node) for row in rows]

    def _view(self, endpoint: Endpoint) -> EndpointView:
        entry = self.desired.endpoint_entries.get(endpoint.id)
        return views.endpoint_view(
            endpoint,
            self._policy(endpoint),
            self.problem(endpoint),
            audit=self.in_audit(),
            judged=entry is None or entry.judged,
        )

    def _endpoint(self, reference: EndpointReference) -> Endpoint:
        rows = self._candidates(reference)
        if not rows:
            raise not_found("endpoint", reference, "`cilia endpoint list`")
        if len(rows) > 1:
            raise ApiError(409, f"{reference} names {len(rows)} endpoints; use the number of one of them.")
        return rows[0]

    def _candidates(self, reference: EndpointReference) -> list[Endpoint]:
        if reference.pod:
            wanted = f"{reference.namespace}/{reference.pod}"
            return [row for row in self.desired.endpoints if row.pod_name == wanted]
        if reference.container_id:
            return [
                row
                for row in self.desired.endpoints
                if row.attachment.container_id.startswith(reference.container_id)
            ]
        row = self.desired.endpoints.get(EndpointId(reference.id))
        return [] if row is None else [row]

    def _service(self, entry: ServiceEntry) -> ServiceView:
        state = self.desired.service_states.get(owner_of(entry))
        return service_views.service_view(
            entry, self, service_views.why_none(entry, self.inputs), state.problems if state else ()
        )

    def _at(self, reference: str) -> list[ServiceEntry]:
        """Frontends at ADDRESS:PORT, of all protocols unless it names one."""
        where, _, protocol = reference.partition("/")
        host, _, port = where.rpartition(":")
        try:
            address, number = str(ipaddress.ip_address(host.strip("[]"))), int(port)
        except ValueError:
            return []
        asked = [each for each in Protocol if protocol.upper() in ("", each.name)]
        rows = self.desired.service_entries
        return [row for each in asked if (row := rows.get(Frontend(address, number, each))) is not None]

    def _named(self, reference: str) -> list[ServiceEntry]:
        """Those of NAMESPACE/NAME; without a namespace of a service by hand, or of namespace default."""
        namespace, _, name = reference.rpartition("/")
        rows = self.desired.service_entries
        return rows.by("service", (namespace, name)) or rows.by("service", (namespace or "default", name))

    def _owners(self, reference: str) -> set[Owner]:
        """Objects of that name that have no frontend."""
        namespace, _, name = reference.rpartition("/")
        wanted = {(namespace, name), (namespace or "default", name), ("", reference)}
        return {row.key for row in self.desired.service_states if row.key[1:] in wanted}

    def _policy(self, endpoint: Endpoint) -> SubjectPolicy | None:
        entry = self.desired.endpoint_entries.get(endpoint.id)
        return None if entry is None else self.desired.subjects.get(entry.subject)

    def _labels(self, number: IdentityId) -> tuple[str, ...]:
        row = self.desired.identities.get(number)
        return () if row is None else tuple(row.labels.strings())

    def _rules(self, cookie: Cookie) -> CookieRow | None:
        return self.desired.cookies.get(cookie)


def _by_owner(entry: ServiceEntry) -> str:
    return "\0".join((entry.namespace, entry.name, entry.kind, str(entry.frontend)))
