"""One leads, others wait; leadership ends in time and is given back."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cilia.cluster import store as cluster
from cilia.cluster.store import LEASES
from cilia.kit.clock import SystemClock
from cilia.model.resources.core import LeaseSpec
from cilia.operator.leader import Elector, Sighting, claim, micro_time, sight
from cilia.operator.settings import ElectionSettings
from tests.support.memory_store import MemoryStore

ME = ElectionSettings(identity="me")


def quick(identity: str, lease: float = 30.0) -> ElectionSettings:
    """Asks often; `lease` is in seconds, by default longer than a busy machine stands still."""
    return ElectionSettings(
        identity=identity, lease_duration=lease, renew_deadline=lease * 2 / 3, retry_period=0.01
    )


def held(by: str, renewed: str = "t1", duration: int = 15) -> LeaseSpec:
    return LeaseSpec(
        holder_identity=by, renew_time=renewed, lease_duration_seconds=duration, lease_transitions=4
    )


def test_a_free_lease_is_taken() -> None:
    for spec in (LeaseSpec(), held("")):
        taken = claim(spec, sight(None, spec, 0), ME, 0, "now")
        assert taken is not None
        assert (taken.holder_identity, taken.acquire_time, taken.renew_time) == ("me", "now", "now")
        assert taken.lease_transitions == (spec.lease_transitions or 0) + 1


def test_a_renewal_is_no_transition() -> None:
    spec = LeaseSpec(holder_identity="me", acquire_time="then", renew_time="t1", lease_transitions=4)
    renewed = claim(spec, sight(None, spec, 0), ME, 3, "now")
    assert renewed is not None
    assert (renewed.acquire_time, renewed.renew_time, renewed.lease_transitions) == ("then", "now", 4)


def test_anothers_lease_counts_from_when_it_was_first_seen_unchanged() -> None:
    seen = sight(None, held("other"), 100)
    assert claim(held("other"), seen, ME, 114.9, "now") is None
    assert claim(held("other"), seen, ME, 115, "now") is not None
    assert sight(seen, held("other"), 110) is seen
    assert sight(seen, held("other", "t2"), 110) == Sighting("other", "t2", 110)


def test_micro_time_has_six_decimals() -> None:
    assert micro_time(1_700_000_000) == "2023-11-14T22:13:20.000000Z"


def test_settings_under_which_two_could_lead_are_refused() -> None:
    with pytest.raises(ValueError, match="lease duration > renew deadline"):
        ElectionSettings(identity="me", lease_duration=10, renew_deadline=10)


def holder(memory: MemoryStore) -> str:
    return str(
        memory.fields(LEASES, "cilium-operator-resource-lock", "kube-system")["spec"]["holderIdentity"]
    )


class Candidate:
    """An elector whose work only says when it starts and ends."""

    def __init__(self, memory: MemoryStore, settings: ElectionSettings) -> None:
        self.elector = Elector(memory, settings, SystemClock())
        self.working = asyncio.Event()
        self.stopped = asyncio.Event()
        self.task = asyncio.ensure_future(self.elector.run(self.work))

    async def work(self) -> None:
        self.working.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def run(story: Callable[[MemoryStore], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await story(MemoryStore())

    asyncio.run(main())


def test_the_second_leads_when_the_first_leaves() -> None:
    async def story(memory: MemoryStore) -> None:
        first = Candidate(memory, quick("first"))
        await first.working.wait()
        second = Candidate(memory, quick("second"))
        await asyncio.sleep(0.05)
        assert (first.elector.leading, second.elector.leading) == (True, False)
        await first.stop()
        assert first.stopped.is_set()
        await second.working.wait()
        assert holder(memory) == "second"
        await second.stop()
        assert holder(memory) == ""

    run(story)


def test_the_second_leads_when_the_first_is_silent() -> None:
    async def story(memory: MemoryStore) -> None:
        await memory.create(
            LEASES,
            cluster.encode(
                LEASES,
                {
                    "metadata": {"name": "cilium-operator-resource-lock"},
                    "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 1, "renewTime": "t"},
                },
            ),
            namespace="kube-system",
        )
        second = Candidate(memory, quick("second"))
        await second.working.wait()
        assert holder(memory) == "second"
        await second.stop()

    run(story)


def test_who_can_not_renew_stops_working_and_leads_again_later() -> None:
    async def story(memory: MemoryStore) -> None:
        first = Candidate(memory, quick("first", lease=0.3))
        await first.working.wait()
        memory.down = cluster.Unavailable("away")
        await first.stopped.wait()
        assert not first.elector.leading
        first.working.clear()
        memory.down = None
        await first.working.wait()
        await first.stop()

    run(story)


def test_who_is_replaced_stops_at_once() -> None:
    async def story(memory: MemoryStore) -> None:
        first = Candidate(memory, quick("first"))
        await first.working.wait()
        await memory.patch(
            LEASES,
            "cilium-operator-resource-lock",
            b'{"spec": {"holderIdentity": "usurper", "renewTime": "x", "leaseDurationSeconds": 60}}',
            namespace="kube-system",
        )
        await first.stopped.wait()
        await first.stop()
        assert holder(memory) == "usurper", "only one's own lease is given back"

    run(story)


def test_failing_work_surfaces_and_the_lease_is_given_back() -> None:
    async def story(memory: MemoryStore) -> None:
        async def work() -> None:
            raise RuntimeError("bug")

        elector = Elector(memory, quick("me"), SystemClock())
        with pytest.raises(RuntimeError, match="bug"):
            await elector.run(work)
        assert holder(memory) == ""

    run(story)
