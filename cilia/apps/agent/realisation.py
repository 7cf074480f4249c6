"""How far policies have got: from the revision that is computed to what the kernel enforces."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping

from cilia.apps.agent.statuses import NodeWord, PolicyKey
from cilia.control.graph import ControlGraph
from cilia.dataplane.order import KernelState
from cilia.kit.clock import Clock
from cilia.model.policy import PolicyMode
from cilia.schema import Desired, Inputs

UNREALISED_LIMIT = 1024
"""Changes that are waited for at once; of more the oldest are not timed."""


class PolicyWords:
    """What this node has to say of each policy that selects an endpoint of it."""

    def __init__(self, graph: ControlGraph, kernel: KernelState) -> None:
        self._graph = graph
        self._kernel = kernel

    def say(self) -> Mapping[PolicyKey, NodeWord | None]:
        """By policy; None where the kernel is not there yet."""
        policy, subjects = self._graph.policy, self._kernel.subjects
        errors = {key: status.error for key, status in subjects.errors().items()}
        off = policy.audit or policy.mode is PolicyMode.NEVER
        found: dict[PolicyKey, NodeWord | None] = {}
        for key, concern in policy.concerns().items():
            error = next((errors[subject] for subject in sorted(concern.subjects) if subject in errors), "")
            if error:
                found[key] = NodeWord(ok=False, error=error)
            elif all(subjects.done(subject) for subject in concern.subjects):
                enforcing = not (off or concern.noted)
                found[key] = NodeWord(ok=True, enforcing=enforcing, revision=int(policy.revision))
            else:
                found[key] = None
        return found


class PolicyDelays:
    """Times each change of the policies, from the table that tells of it to the kernel that enforces it, and
    counts what became of it."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        realized: Callable[[], int],
        observe: Callable[[float], None],
        clock: Clock,
    ) -> None:
        """`realized` tells the newest revision that all endpoints enforce; `observe` takes seconds."""
        self.outcomes = Counter[str](success=0, fail=0)
        """Changes that could be enforced as written, and that could not."""
        self._policies = inputs.policies
        self._states = desired.policy_states.cursor()
        self._states.take()
        self._counted = {row.key: row.resource_version for row in desired.policy_states}
        self._realized = realized
        self._observe = observe
        self._clock = clock
        self._waiting: deque[tuple[int, float]] = deque(maxlen=UNREALISED_LIMIT)
        inputs.policies.listen(self._changed)

    def _changed(self) -> None:
        self._waiting.append((self._policies.revision, self._clock.monotonic()))

    def stepped(self) -> None:
        """Look how far the kernel has got."""
        if self._states.pending:
            self._count()
        if not self._waiting:
            return
        realized, now = self._realized(), self._clock.monotonic()
        while self._waiting and self._waiting[0][0] <= realized:
            self._observe(now - self._waiting.popleft()[1])

    def _count(self) -> None:
        """A state may change without its policy: by its warnings."""
        put, deleted = self._states.take()
        for state in put:
            if self._counted.get(state.key) != state.resource_version:
                self._counted[state.key] = state.resource_version
                self.outcomes["success" if state.valid else "fail"] += 1
        for key in deleted:
            self._counted.pop(key, None)
            self.outcomes["success"] += 1
