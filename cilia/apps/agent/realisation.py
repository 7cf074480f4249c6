"""How far policies have got: from the revision that is computed to what the kernel enforces."""

from __future__ import annotations

from collections.abc import Mapping

from cilia.apps.agent.statuses import NodeWord, PolicyKey
from cilia.control.graph import ControlGraph
from cilia.dataplane.order import KernelState
from cilia.model.policy import PolicyMode


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
