"""How far policies have got, and how long it took."""

from __future__ import annotations

from cilia.apps.agent.metrics import AgentCollector, AgentMetrics, HubbleNumbers, KernelNumbers, PolicyNumbers
from cilia.apps.agent.realisation import PolicyDelays
from cilia.kit.clock import ManualClock
from cilia.model.endpoint import EndpointEntry
from cilia.model.ids import EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import PolicyObject, PolicyProblem, PolicyState, SubjectKey, SubjectPolicy
from cilia.schema import Desired, Inputs


class Engine:
    """The tables and a kernel that is as far as it is told."""

    def __init__(self) -> None:
        self.inputs, self.desired, self.clock = Inputs(), Desired(), ManualClock()
        self.realized = 0
        self.seen: list[float] = []
        self.delays = PolicyDelays(
            self.inputs, self.desired, lambda: self.realized, self.seen.append, self.clock
        )

    def change(self, version: str, *, valid: bool = True, warnings: tuple[PolicyProblem, ...] = ()) -> None:
        self.inputs.policies.put(
            PolicyObject(kind="NetworkPolicy", namespace="demo", name="web", resource_version=version)
        )
        self.desired.policy_states.put(
            PolicyState(
                kind="NetworkPolicy",
                namespace="demo",
                name="web",
                resource_version=version,
                generation=0,
                valid=valid,
                warnings=warnings,
            )
        )


def test_a_change_is_timed_until_every_endpoint_enforces_it() -> None:
    engine = Engine()
    engine.change("1")
    engine.clock.advance(0.5)
    engine.change("2")
    engine.clock.advance(0.25)
    engine.delays.stepped()
    assert engine.seen == []
    engine.realized = 1
    engine.delays.stepped()
    assert engine.seen == [0.75]
    engine.realized = 2
    engine.clock.advance(1)
    engine.delays.stepped()
    engine.delays.stepped()
    assert engine.seen == [0.75, 1.25]


def test_changes_are_counted_by_what_became_of_them_and_warnings_are_none() -> None:
    engine = Engine()
    engine.change("1")
    engine.delays.stepped()
    engine.change("1", warnings=(PolicyProblem("spec", "Nobody."),))
    engine.delays.stepped()
    engine.change("2", valid=False)
    engine.delays.stepped()
    assert engine.delays.outcomes == {"success": 1, "fail": 1}
    engine.desired.policy_states.delete(("NetworkPolicy", "demo", "web"))
    engine.delays.stepped()
    assert engine.delays.outcomes == {"success": 2, "fail": 1}


def test_metrics_tell_who_is_isolated_and_what_is_refused() -> None:
    inputs, desired = Inputs(), Desired()
    for number, audit in ((1, False), (2, True)):
        identity = IdentityId(300)
        desired.subjects.put(
            SubjectPolicy(
                subject=SubjectId(number),
                key=SubjectKey(identity, audit=audit),
                labels=Labels(),
                rules="",
                revision=Revision(1),
                entries={},
                ingress_enforced=True,
                egress_enforced=False,
            )
        )
        desired.endpoint_entries.put(
            EndpointEntry(
                id=EndpointId(number),
                ifindex=number,
                identity=identity,
                subject=SubjectId(number),
                mac="",
                host_mac="",
            )
        )
    numbers = PolicyNumbers(revision=4, outcomes={"success": 3}, largest_peers={"cluster": 9})
    metrics = AgentMetrics(AgentCollector(inputs, desired, KernelNumbers, HubbleNumbers, lambda: numbers))
    lines = metrics.text().decode().splitlines()
    for line in (
        'cilium_policy_endpoint_enforcement_status{enforcement="ingress"} 1.0',
        'cilium_policy_endpoint_enforcement_status{enforcement="audit-ingress"} 1.0',
        'cilium_policy_change_total{outcome="success"} 3.0',
        'cilium_policy_selector_match_count_max{class="cluster"} 9.0',
        "cilium_policy_max_revision 4.0",
    ):
        assert line in lines
