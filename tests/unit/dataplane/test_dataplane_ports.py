"""Ports of the node that translations use up: who uses most, and how long they last."""

from __future__ import annotations

import numpy as np

from cilia.abi import layout
from cilia.dataplane.maps.translations import PortSample, PortUsage, PortUse, forecast


def test_who_holds_translations_is_counted_by_the_way_back() -> None:
    described = layout()
    usage = PortUsage(described)
    keys = np.zeros(6, described.dtype("nat_key"))
    values = np.zeros(6, described.dtype("nat_entry"))
    keys["way"] = [described.value("NAT_REVERSE")] * 4 + [described.value("NAT_FORWARD")] * 2
    keys["source"]["lo"] = [1, 1, 2, 2, 3, 3]
    values["endpoint"] = [7, 7, 9, 0, 9, 9]
    usage.look(keys, values)
    found = usage.sample(1.0, 1000, 2)
    assert (found.total, found.owners[0], len(found.owners)) == (4, (2, 7), 2)
    assert PortUsage(described).sample(1.0, 1000, 5).owners == ()


def use(used: int, peer: str = "198.51.100.1") -> PortUse:
    return PortUse(used, 6, peer, 443, "192.0.2.1")


def sample(time: float, *uses: PortUse) -> PortSample:
    return PortSample(time, 1000, uses)


def test_ports_that_grow_run_out_in_time() -> None:
    (found,) = forecast(sample(100.0, use(400)), sample(130.0, use(700)))
    assert (found.share, found.seconds) == (0.7, 30.0)


def test_nothing_is_foretold_of_what_shrinks_or_was_not_seen_before() -> None:
    before = sample(100.0, use(500))
    for after in (sample(130.0, use(500)), sample(130.0, use(400)), sample(130.0, use(900, "198.51.100.2"))):
        assert forecast(before, after)[0].seconds is None
    assert forecast(None, sample(130.0, use(900)))[0].seconds is None
    assert forecast(sample(100.0, use(1)), sample(100.0, use(2)))[0].seconds is None


def test_what_ran_out_is_told_first() -> None:
    before = sample(0.0, use(100, "198.51.100.1"), use(980, "198.51.100.2"), use(600, "198.51.100.3"))
    after = sample(
        10.0,
        use(300, "198.51.100.1"),
        use(1000, "198.51.100.2"),
        use(600, "198.51.100.3"),
        use(7, "198.51.100.4"),
    )
    found = forecast(before, after)
    assert [one.use.peer[-1] for one in found] == ["2", "1", "3", "4"]
    assert [one.seconds for one in found] == [0.0, 35.0, None, None]
