"""What became of each policy: valid or refused, and warnings, for which policies are reviewed in turn."""

from __future__ import annotations

from collections.abc import Iterable, Set

from cilia.control.nodes import known_nodes
from cilia.control.policy.meaning.everybody import Everybody
from cilia.control.policy.meaning.expand import PolicyKey, PolicyRules, Reference, RuleNode
from cilia.control.policy.meaning.review import Ground, review
from cilia.control.policy.rules import Meant, PortName
from cilia.model.ids import IdentityId
from cilia.model.node import Node
from cilia.model.policy import PolicyProblem, PolicyState
from cilia.schema import Desired, Inputs


class PolicyStates:
    """rules, and all that policies speak of -> policy_states. What a review asks (review.Known)."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        rules: RuleNode,
        everybody: Everybody,
        *,
        own: Node | None = None,
        cidr_nodes: bool = False,
    ) -> None:
        self._inputs = inputs
        self._desired = desired
        self._rules = rules
        self._everybody = everybody
        self._own = own
        self._cidr_nodes = cidr_nodes
        self._turns: dict[PolicyKey, object] = {}
        """Policies in the order in which their turn comes, each with what it was last reviewed in."""

    def put(self, row: PolicyRules) -> None:
        """Tell of a policy that is new or another; what the last review found stands until the next one."""
        self._turns.setdefault(row.key, None)
        before = self._desired.policy_states.get(row.key)
        self._tell(row, before.warnings if before is not None else ())

    def delete(self, key: PolicyKey) -> None:
        """A policy is gone."""
        self._turns.pop(key, None)
        self._desired.policy_states.delete(key)

    def review(self, limit: int) -> bool:
        """Look for warnings about up to `limit` policies, those in turn about whose surroundings something
        changed; returns whether there may be more to do."""
        inputs, desired = self._inputs, self._desired
        around = (
            *(table.revision for table in (inputs.nodes, inputs.cidr_groups, inputs.services)),
            *(table.revision for table in (inputs.endpoint_slices, inputs.remote_endpoints)),
            *(table.revision for table in (desired.identities, desired.endpoints)),
        )
        ground: Ground | None = None
        for key in list(self._turns):
            if not limit:
                return True
            row = self._rules.rules.get(key)
            seen = (around, row)
            if row is None or self._turns[key] == seen:
                continue
            if ground is None:
                ground = Ground(known_nodes(inputs.nodes, self._own), cidr_nodes=self._cidr_nodes)
            limit -= 1
            # To the end: the others get their turn before it.
            del self._turns[key]
            self._turns[key] = seen
            self._tell(row, review(row, self, ground))
        return False

    def select(self, peer: Meant) -> Set[IdentityId]:
        """The identities a peer means now, whether some rule speaks of it or not."""
        return self._everybody.select(peer)

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""
        return self._everybody.naming(name)

    def exists(self, reference: Reference) -> bool:
        """Whether anything that a reference names is there."""
        return self._rules.references.exists(reference)

    def _tell(self, row: PolicyRules, warnings: Iterable[PolicyProblem]) -> None:
        policy, parsed = row.policy, row.parsed
        found = tuple(dict.fromkeys((*parsed.warnings, *warnings))) if parsed.sections else ()
        self._desired.policy_states.put(
            PolicyState(
                kind=policy.kind,
                namespace=policy.namespace,
                name=policy.name,
                resource_version=policy.resource_version,
                generation=policy.generation,
                valid=not parsed.problems,
                problems=parsed.problems,
                warnings=found,
            )
        )
