"""Accounts of entries from counters and flows that a fake kernel holds."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cilia.abi import layout
from cilia.dataplane.bpf import Array, possible_cpus
from cilia.dataplane.maps.accounting import Account, Accounting, Usage
from cilia.model.ids import Cookie, SubjectId
from cilia.model.policy import Direction, EntryKey

LAYOUT = layout()
IN, OUT = int(Direction.INGRESS), int(Direction.EGRESS)
ENDPOINT, SUBJECT = 7, SubjectId(3)
WEB = EntryKey(IN, 300, 6, 80, 24)
DEFAULT = EntryKey(IN, 0)


class FakeMap:
    """A hash in memory, with the methods the accounting uses."""

    def __init__(self, key: str, value: str, *, per_cpu: bool = False) -> None:
        self.key, self.value = LAYOUT.dtype(key), LAYOUT.dtype(value)
        self.copies = possible_cpus() if per_cpu else 1
        self.rows: dict[bytes, Array] = {}

    def keys(self, count: int) -> Array:
        return np.zeros(count, self.key)

    def lookup(self, key: Array) -> Array | None:
        return self.rows.get(key.tobytes())

    def update(self, key: Array, value: Array, _flags: object = None) -> None:
        self.rows[key.tobytes()] = value

    def remove(self, keys: Array) -> int:
        return sum(self.rows.pop(key.tobytes(), None) is not None for key in keys)

    def batches(self, _chunk: int = 0) -> Iterator[tuple[Array, Array]]:
        if self.rows:
            keys = np.frombuffer(b"".join(self.rows), self.key)
            yield keys, np.concatenate([row.reshape(-1) for row in self.rows.values()])


def counters() -> FakeMap:
    return FakeMap("policy_counter_key", "policy_counter", per_cpu=True)


def accounting(counted: FakeMap, flows: FakeMap) -> Accounting:
    made = Accounting(counted, flows, LAYOUT)  # type: ignore[arg-type]
    made.follow([(ENDPOINT, SUBJECT)])
    return made


def count(found: FakeMap, key: EntryKey, cookie: int, packets: int, octets: int, last: int) -> None:
    """Write a counter, its packets spread over the CPUs."""
    name = np.zeros(1, found.key)
    name["subject"], name["cookie"] = SUBJECT, cookie
    for field in ("direction", "peer", "protocol", "port", "bits"):
        name[field] = getattr(key, field)
    values = np.zeros(found.copies, found.value)
    values["packets"][0], values["packets"][-1] = packets - packets // 2, values["packets"][-1]
    values["packets"][-1] += packets // 2
    values["bytes"][0], values["last"][-1] = octets, last
    found.update(name, values)


def flow(found: FakeMap, number: int, **fields: Any) -> None:
    """Write a flow from 300 to port 80 of the endpoint, judged by its ingress."""
    key, value = np.zeros(1, found.key), np.zeros(1, found.value)
    key["low"]["lo"], key["high"]["lo"] = 1, 2
    key["low_port"], key["high_port"], key["protocol"] = 40000 + number, 80, 6
    side = value["side"][:, 1]
    side["judged"], side["endpoint"], side["cookie"] = (5 << 32) | 300, ENDPOINT, 9
    value["packets"], value["bytes"] = (10, 5), (1000, 500)
    value["prefix"][:, 1] = 24
    for name, content in fields.items():
        if name in ("protocol", "low_port", "high_port"):
            key[name] = content
        elif name in ("judged", "endpoint", "cookie"):
            side[name] = content
        elif name in ("prefix", "any_peer"):
            value[name][:, 1] = content
        else:
            value[name] = content
    found.update(key, value)


def test_flows_and_counters_are_one_account() -> None:
    counted, flows = counters(), FakeMap("ct_key", "ct_entry")
    count(counted, WEB, 9, 3, 180, 50)
    count(counted, DEFAULT, 4, 7, 420, 60)
    flow(flows, 1)
    flow(flows, 2)
    found = accounting(counted, flows).usage()
    assert found == {
        Account(SUBJECT, WEB, Cookie(9)): Usage(3, 30, 3000, 50),
        Account(SUBJECT, DEFAULT, Cookie(4)): Usage(7, 7, 420, 60),
    }


def test_flows_go_to_the_entry_as_far_as_its_prefix_reaches() -> None:
    flows = FakeMap("ct_key", "ct_entry")
    high = LAYOUT.value("CT_INITIATOR_HIGH")
    flow(flows, 1, prefix=0, any_peer=1)
    flow(flows, 2, prefix=8, any_peer=1)
    flow(flows, 3, prefix=20)
    flow(flows, 4, flags=high, low_port=443, high_port=50000)
    flow(flows, 5, protocol=1, high_port=0x108, low_port=77)
    keys = {account.key for account in accounting(counters(), flows).usage()}
    assert keys == {
        EntryKey(IN, 0),
        EntryKey(IN, 0, 6, 0, 8),
        EntryKey(IN, 300, 6, 80 & 0xFFF0, 20),
        EntryKey(IN, 300, 6, 443, 24),
        EntryKey(IN, 300, 1, 8, 24),
    }


def test_what_was_denied_or_is_of_nobody_here_is_no_flow_of_an_entry() -> None:
    flows = FakeMap("ct_key", "ct_entry")
    flow(flows, 1, judged=(1 << 63) | 300)
    flow(flows, 2, endpoint=99)
    flow(flows, 3, judged=0)
    assert accounting(counters(), flows).usage() == {}


def test_closed_flows_still_count() -> None:
    flows = FakeMap("ct_key", "ct_entry")
    flow(flows, 1)
    made = accounting(counters(), flows)
    ((keys, values),) = flows.batches()
    made.close(keys, values)
    flows.rows.clear()
    flow(flows, 2)
    assert made.usage() == {Account(SUBJECT, WEB, Cookie(9)): Usage(0, 30, 3000, 0)}


def test_the_beginning_is_noted_once_and_survives() -> None:
    counted, flows = counters(), FakeMap("ct_key", "ct_entry")
    assert accounting(counted, flows).began(100) == 100
    assert accounting(counted, flows).began(200) == 100
    made = accounting(counted, flows)
    assert made.usage() == {}
    list(made.prune(lambda account: False))
    assert made.began(300) == 100
    assert made.entries == 1


def test_full_counters_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fills them before the beginning is noted must not end the sweeps, and with them the agent."""
    counted, flows = counters(), FakeMap("ct_key", "ct_entry")

    def full(*_: object) -> None:
        raise OSError(errno.E2BIG, "full")

    made = accounting(counted, flows)
    with monkeypatch.context() as patch:
        patch.setattr(counted, "update", full)
        assert made.began(100) == 100
    assert made.began(200) == 200
    assert made.began(300) == 200


def test_accounts_of_entries_that_are_gone_are_forgotten() -> None:
    counted, flows = counters(), FakeMap("ct_key", "ct_entry")
    count(counted, WEB, 9, 3, 180, 50)
    count(counted, WEB, 8, 3, 180, 50)
    flow(flows, 1, cookie=8)
    made = accounting(counted, flows)
    ((keys, values),) = flows.batches()
    made.close(keys, values)
    flows.rows.clear()
    steps = list(made.prune(lambda account: account.cookie == 9))
    assert steps == [None, 1]
    assert list(made.usage()) == [Account(SUBJECT, WEB, Cookie(9))]
