"""What the agents write into policies' statuses: what, when, and never against each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from cilia.apps.agent import statuses
from cilia.apps.agent.statuses import (
    NodeWord,
    PolicyKey,
    StatusPublisher,
    condition_message,
    listed,
    shortened,
)
from cilia.cluster import store as cluster
from cilia.kit.clock import ManualClock
from cilia.model.policy import PolicyObject, PolicyProblem, PolicyState
from cilia.model.resources.cilium_policy import CiliumNetworkPolicy
from cilia.schema import Desired, Inputs
from tests.support.memory_store import MemoryStore

KEY: PolicyKey = ("CiliumNetworkPolicy", "demo", "web")
STATE = PolicyState(
    kind="CiliumNetworkPolicy",
    namespace="demo",
    name="web",
    resource_version="1",
    generation=1,
    valid=True,
)
FAULT = PolicyProblem("spec.ingress[0]", "Write a port.")
NOBODY = PolicyProblem("spec.endpointSelector", "It selects nothing.")
OK = NodeWord(ok=True, enforcing=True, revision=3)


class Cluster:
    """A store with one policy, and a clock that all nodes share."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock(monotonic=1_000.0)

    async def begin(self, status: dict[str, Any] | None = None) -> None:
        fields: dict[str, Any] = {
            "metadata": {"name": "web", "namespace": "demo", "uid": "u1", "generation": 1},
            "spec": {"endpointSelector": {}, "ingress": [{}]},
        }
        await self.store.put(cluster.CILIUM_NETWORK_POLICIES, fields | ({"status": status} if status else {}))
        self.store.writes.clear()

    @property
    def status(self) -> dict[str, Any]:
        fields = self.store.fields(cluster.CILIUM_NETWORK_POLICIES, "web", "demo")
        found: dict[str, Any] = fields.get("status", {})
        return found

    def condition(self, name: str) -> dict[str, Any]:
        rows = [row for row in self.status.get("conditions", ()) if row["type"] == name]
        return rows[0] if rows else {}


class Node:
    """A node's publisher, and the tables it reads."""

    def __init__(self, cluster_: Cluster, name: str = "n1") -> None:
        self.inputs, self.desired = Inputs(), Desired()
        self.words: dict[PolicyKey, NodeWord | None] = {}
        self.clock = cluster_.clock
        self.heard(cluster_)
        self.publisher = StatusPublisher(
            cluster_.store, self.inputs, self.desired, self.clock, node=name, words=lambda: self.words
        )

    def heard(self, cluster_: Cluster) -> None:
        """What the watch brought when the agent started."""
        raw = json.dumps(cluster_.store.fields(cluster.CILIUM_NETWORK_POLICIES, "web", "demo")).encode()
        body = msgspec.json.decode(raw, type=CiliumNetworkPolicy)
        self.inputs.policies.put(
            PolicyObject(kind=KEY[0], namespace=KEY[1], name=KEY[2], uid="u1", generation=1, body=body)
        )

    async def tell(self, seconds: float = 0.0, **changes: Any) -> None:
        """A new state, if there are changes; then what happens within some seconds."""
        if changes or not len(self.desired.policy_states):
            self.desired.policy_states.put(msgspec.structs.replace(STATE, **changes))
        await self.publisher.publish()
        end = self.clock.monotonic() + seconds
        while self.publisher.due is not None and self.publisher.due <= end:
            self.clock.advance(self.publisher.due - self.clock.monotonic())
            await self.publisher.publish()
        self.clock.advance(max(0.0, end - self.clock.monotonic()))


def play(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_a_policy_condition_names_the_fields_at_fault() -> None:
    state = msgspec.structs.replace(
        STATE, valid=False, problems=(FAULT, PolicyProblem("spec.egress[1]", "Neither."))
    )
    assert condition_message(state) == "spec.ingress[0]: Write a port. spec.egress[1]: Neither."


def test_a_message_has_a_limit() -> None:
    assert len(listed((FAULT,) * 1000)) == statuses.MESSAGE_LIMIT
    assert shortened("short", 10) == "short"


def test_validity_is_told_at_once_and_once() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        await node.tell(10)
        assert world.condition("Valid")["status"] == "True"
        assert world.condition("Valid")["reason"] == "Accepted"
        assert world.condition("Plausible") == {}
        assert [write[0] for write in world.store.writes] == ["patch"]
        assert not node.publisher.pending
        assert node.publisher.due is None or node.publisher.due <= node.clock.monotonic()

    play(story())


def test_conditions_of_others_and_their_times_stay() -> None:
    async def story() -> None:
        world = Cluster()
        theirs = {"type": "Theirs", "status": "True", "extra": 1}
        await world.begin({"conditions": [theirs]})
        node = Node(world)
        await node.tell(2, valid=False, problems=(FAULT,))
        before = world.condition("Valid")["lastTransitionTime"]
        await node.tell(2, valid=False, problems=(NOBODY,))
        assert world.condition("Theirs") == theirs
        assert world.condition("Valid")["message"] == "spec.endpointSelector: It selects nothing."
        assert world.condition("Valid")["lastTransitionTime"] == before
        await node.tell(2, valid=True, problems=())
        assert world.condition("Valid")["lastTransitionTime"] != before

    play(story())


NONSENSE: list[Any] = [
    "x",
    [],
    {"conditions": "x"},
    {"conditions": [7]},
    {"conditions": [{"type": ["Valid"]}, {"type": {}}, {}]},
    {"nodes": "x"},
    {"nodes": {"n1": 7}},
    {"nodes": {"n2": {"ok": "yes"}}},
]


@pytest.mark.parametrize("status", NONSENSE, ids=map(str, NONSENSE))
def test_a_status_that_makes_no_sense_is_written_over(status: Any) -> None:
    """Another node may lie, but not keep this one from speaking, nor end it."""

    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        node.words[KEY] = OK
        fields = world.store.fields(cluster.CILIUM_NETWORK_POLICIES, "web", "demo")
        await world.store.put(cluster.CILIUM_NETWORK_POLICIES, fields | {"status": status})
        await node.tell(3)
        assert world.condition("Valid")["status"] == "True"
        assert world.status["nodes"]["n1"]["ok"] is True
        assert not node.publisher.pending

    play(story())


def test_a_warning_is_told_when_it_has_stood_and_taken_back_at_once() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        await node.tell(4, warnings=(NOBODY,))
        assert world.condition("Plausible") == {}
        await node.tell(2)
        assert world.condition("Plausible")["status"] == "False"
        assert "selects nothing" in world.condition("Plausible")["message"]
        assert world.condition("Valid")["status"] == "True"
        await node.tell(warnings=())
        assert world.condition("Plausible")["status"] == "True"

    play(story())


def test_warnings_that_come_and_go_are_not_told() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        await node.tell(1)
        for _ in range(10):
            await node.tell(3, warnings=(NOBODY,))
            await node.tell(3, warnings=())
        assert [write[0] for write in world.store.writes] == ["patch"]

    play(story())


def test_a_restart_takes_nothing_back_that_still_holds() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        node.words = {KEY: OK}
        await node.tell(10, warnings=(NOBODY,))
        world.store.writes.clear()
        again = Node(world)
        again.words = {KEY: msgspec.structs.replace(OK, revision=1)}
        await again.tell(10, warnings=(NOBODY,))
        assert world.store.writes == []

    play(story())


def test_a_restart_asks_nothing_about_what_stands_there() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        await Node(world).tell(2)
        again = Node(world)
        world.store.down = cluster.Unavailable("not to be asked")
        await again.tell(2)

    play(story())


def test_each_node_says_what_became_of_the_policy_there_in_one_write() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        first, second = Node(world, "n1"), Node(world, "n2")
        first.words = {KEY: OK}
        second.words = {KEY: NodeWord(ok=False, error="no room")}
        await first.tell()
        await second.tell()
        assert [write[0] for write in world.store.writes] == ["patch", "patch"]
        nodes = world.status["nodes"]
        assert nodes["n1"]["ok"] is True
        assert nodes["n1"]["localPolicyRevision"] == 3
        assert "error" not in nodes["n1"]
        assert nodes["n2"] == {
            "ok": False,
            "enforcing": False,
            "error": "no room",
            "localPolicyRevision": 0,
            "lastUpdated": nodes["n2"]["lastUpdated"],
        }
        second.words = {KEY: OK}
        second.publisher._subjects.mark(statuses_subject())
        await second.tell(5)
        assert "error" not in world.status["nodes"]["n2"]

    play(story())


def statuses_subject() -> Any:
    """A subject that is said to have changed."""
    return 1


def test_a_node_takes_its_word_back_and_leaves_the_others() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        first, second = Node(world, "n1"), Node(world, "n2")
        first.words = second.words = {KEY: OK}
        await first.tell(2)
        await second.tell(2)
        first.words = {}
        first.publisher._subjects.mark(statuses_subject())
        await first.tell(5)
        assert set(world.status["nodes"]) == {"n2"}

    play(story())


def test_what_is_not_realised_yet_is_told_when_it_is() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        node.words = {KEY: None}
        await node.tell(3)
        assert "nodes" not in world.status
        node.words = {KEY: OK}
        await node.tell(2)
        assert world.status["nodes"]["n1"]["ok"] is True

    play(story())


def test_an_edit_is_not_called_realised_before_it_is() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        node.words = {KEY: OK}
        await node.tell(2)
        node.words = {KEY: None}
        await node.tell(3, generation=2)
        assert world.status["nodes"]["n1"]["localPolicyRevision"] == 3
        node.words = {KEY: msgspec.structs.replace(OK, revision=4)}
        await node.tell(2)
        assert world.status["nodes"]["n1"]["localPolicyRevision"] == 4

    play(story())


def test_a_refusal_shows_where_the_policy_was_enforced() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        enforcing, other = Node(world, "n1"), Node(world, "n2")
        enforcing.words = {KEY: OK}
        await enforcing.tell(2)
        await other.tell(2)
        for node in (enforcing, other):
            node.words = {}
            await node.tell(2, valid=False, problems=(FAULT,), generation=2, resource_version="2")
        assert set(world.status["nodes"]) == {"n1"}
        assert world.status["nodes"]["n1"]["error"] == "refused: spec.ingress[0]: Write a port."

    play(story())


def test_a_node_says_that_it_enforces_what_it_can_of_a_refused_policy() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        node.words = {KEY: OK}
        await node.tell(2)
        node.words = {KEY: msgspec.structs.replace(OK, revision=4)}
        await node.tell(2, valid=False, problems=(FAULT,), generation=2, resource_version="2")
        assert world.condition("Valid")["status"] == "False"
        found = world.status["nodes"]["n1"]
        assert (found["ok"], found["enforcing"], found["localPolicyRevision"]) == (True, True, 4)

    play(story())


def test_two_nodes_of_different_minds_do_not_write_for_ever() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        first, second = Node(world, "n1"), Node(world, "n2")
        first.desired.policy_states.put(msgspec.structs.replace(STATE, warnings=(NOBODY,)))
        second.desired.policy_states.put(STATE)
        for _ in range(30):
            for node in (first, second):
                node.heard(world)
                await node.publisher.publish()
            world.clock.advance(1)
        assert len(world.store.writes) <= 3

    play(story())


def test_a_second_node_does_not_write_what_is_said() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        for name in ("n1", "n2", "n3"):
            await Node(world, name).tell(3)
        assert len(world.store.writes) == 1

    play(story())


def test_one_policy_is_written_about_once_a_second() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        for number in range(40):
            await node.tell(0.1, valid=False, problems=(PolicyProblem("spec", f"Fault {number}."),))
        assert len(world.store.writes) <= 6
        await node.tell(2)
        assert world.condition("Valid")["message"] == "spec: Fault 39."

    play(story())


def test_an_older_opinion_does_not_speak_of_a_newer_object() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        fields = world.store.fields(cluster.CILIUM_NETWORK_POLICIES, "web", "demo")
        fields["metadata"]["generation"] = 2
        await node.tell(3)
        assert world.store.writes == []
        await node.tell(1, generation=2)
        assert world.condition("Valid")["status"] == "True"

    play(story())


def test_an_object_made_anew_is_told_anew() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        await node.tell(2)
        await world.begin()
        node.inputs.policies.put(
            PolicyObject(kind=KEY[0], namespace=KEY[1], name=KEY[2], uid="u2", generation=1, body=None)
        )
        await node.tell(2, resource_version="9")
        assert world.condition("Valid")["status"] == "True"

    play(story())


def test_the_faults_of_a_networkpolicy_are_one_event_for_the_cluster() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        for name in ("n1", "n2"):
            node = Node(world, name)
            await node.tell(7, kind="NetworkPolicy", valid=False, problems=(FAULT,), warnings=(NOBODY,))
        names = world.store.names(cluster.EVENTS)
        assert len(names) == 2
        events = [world.store.fields(cluster.EVENTS, name, "demo") for name in names]
        assert {event["reason"] for event in events} == {"PolicyRefused", "PolicyWarning"}
        assert all(event["involvedObject"]["name"] == "web" for event in events)

    play(story())


def test_an_api_server_that_is_away_is_told_later() -> None:
    async def story() -> None:
        world = Cluster()
        await world.begin()
        node = Node(world)
        world.store.down = cluster.Unavailable("not now")
        try:
            await node.tell()
        except cluster.Unavailable:
            pass
        world.store.down = None
        await node.tell(2)
        assert world.condition("Valid")["status"] == "True"

    play(story())
