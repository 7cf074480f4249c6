"""Ports of the node that translations use up: who uses most, and how long they last."""

from __future__ import annotations

from cilia.dataplane.maps.translations import PortSample, PortUse, forecast


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
