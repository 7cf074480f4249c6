"""Answers from the agent's tables: the part of `Backend` that needs nothing else.

The agent's composition root derives from it and adds what isn't in tables: status, CNI, kernel maps,
settings, metrics, and how far the kernel has got.
"""

from __future__ import annotations

from cilia.api import views
from cilia.api.backend import ApiError, EndpointReference, not_found
from cilia.api.types import (
    CookieView,
    EndpointPolicy,
    EndpointView,
    IdentityView,
    IpEntry,
    NodeView,
    PolicyList,
)
from cilia.model.endpoint import Endpoint
from cilia.model.ids import Cookie, EndpointId, IdentityId
from cilia.model.policy import CookieRow, SubjectPolicy
from cilia.schema import Desired, Inputs


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

    def _policy(self, endpoint: Endpoint) -> SubjectPolicy | None:
        entry = self.desired.endpoint_entries.get(endpoint.id)
        return None if entry is None else self.desired.subjects.get(entry.subject)

    def _labels(self, number: IdentityId) -> tuple[str, ...]:
        row = self.desired.identities.get(number)
        return () if row is None else tuple(row.labels.strings())

    def _rules(self, cookie: Cookie) -> CookieRow | None:
        return self.desired.cookies.get(cookie)
