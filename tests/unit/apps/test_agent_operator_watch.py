"""What a status page says of the operator."""

from __future__ import annotations

import asyncio

from cilia.api.types import Health
from cilia.apps.agent.operator_watch import KEPT, OperatorWatch
from cilia.cluster import store as cluster
from cilia.kit.clock import ManualClock
from tests.support.memory_store import MemoryStore

NAME = {"name": "cilium-operator-resource-lock", "namespace": "kube-system"}


def test_the_lease_tells_who_leads() -> None:
    async def play() -> None:
        store, clock = MemoryStore(), ManualClock(wall=1_700_000_000.0)
        watch = OperatorWatch(store, clock)
        assert (await watch.state()).state is Health.DISABLED
        spec = {
            "holderIdentity": "operator-1",
            "leaseDurationSeconds": 15,
            "renewTime": "2023-11-14T22:13:20.000000Z",
        }
        await store.put(cluster.LEASES, {"metadata": NAME, "spec": spec})
        assert (await watch.state()).state is Health.DISABLED
        clock.advance(KEPT)
        state = await watch.state()
        assert (state.state, state.msg) == (Health.OK, "operator-1 leads")
        clock.advance(60)
        assert (await watch.state()).msg == "no operator leads"
        store.down = cluster.Unavailable("the server is away")
        clock.advance(KEPT)
        assert "the server is away" in (await watch.state()).msg

    asyncio.run(play())
