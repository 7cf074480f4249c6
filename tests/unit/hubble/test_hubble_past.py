"""GetFlows over ring and sealed files: one answer, no flow twice, none missing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.hubble.history import archive
from cilia.hubble.history.keeper import History
from cilia.hubble.history.settings import HistorySettings
from cilia.kit.tasks import TaskGroup
from cilia.proto.flow import flow_pb2
from tests.support.grpc_client import get_flows
from tests.support.hubble import NODE, WALL, Beside, beside, flow

pytestmark = pytest.mark.timeout(90)
CAPACITY = 128


class Kept:
    """An observer with a past."""

    def __init__(self, running: Beside, path: Path) -> None:
        self.running = running
        self.tasks = TaskGroup()
        settings = HistorySettings(directory=path, block=32, merged=64, interval=60.0)
        self.history = running.call(lambda: History(running.store, NODE.name, settings, running.clock))
        running.run(self.history.open())
        running.call(lambda: self.history.start(self.tasks))
        running.observer.past = self.history
        self.count = 0

    def append(self, count: int, **fields: Any) -> None:
        """As many more flows as a block at a time, each told apart by its port."""
        for _ in range(0, count, 32):
            rows = [flow(self.count + number, **fields) for number in range(min(32, count))]
            self.running.append(*rows)
            self.count += len(rows)
            while self.history.reach < self.count // 32 * 32:
                threading.Event().wait(0.002)

    def close(self) -> None:
        """Seal, stop."""
        self.running.run(self.history.close())
        self.running.run(self.tasks.close())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Beside]:
    with beside(tmp_path / "hubble.sock", capacity=CAPACITY) as running:
        yield running


@pytest.fixture
def kept(running: Beside, tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(running, tmp_path / "history")
    yield kept
    kept.close()


def ask(channel: grpc.Channel, **fields: Any) -> Any:
    for side in fields.keys() & {"since", "until"}:
        moment = Timestamp()
        moment.FromNanoseconds(WALL + 1_000_000 * fields[side])
        fields[side] = moment
    return get_flows(channel, **fields)


def found(channel: grpc.Channel, **fields: Any) -> list[int]:
    return [r.flow.l4.TCP.source_port - 10_000 for r in ask(channel, **fields) if r.HasField("flow")]


def test_every_way_to_ask_reaches_beyond_the_ring(kept: Kept, channel: grpc.Channel) -> None:
    kept.append(1024)
    assert found(channel) == list(range(1024))
    assert found(channel, number=1000) == list(range(24, 1024))
    assert found(channel, number=10) == list(range(1014, 1024))
    assert found(channel, first=True, number=7) == list(range(7))
    assert found(channel, first=True, number=950) == list(range(950))
    assert found(channel, since=100, until=110) == list(range(100, 111))
    assert found(channel, since=890, number=20) == list(range(890, 910))
    assert found(channel, since=1000) == list(range(1000, 1024))
    assert found(channel, until=5) == list(range(6))


def test_filters_masks_and_uuids_mean_the_same_in_the_past(kept: Kept, channel: grpc.Channel) -> None:
    kept.append(320)
    kept.append(32, destination="10.0.2.7", destination_identity=5000, destination_endpoint=0)
    kept.append(320)
    wanted = flow_pb2.FlowFilter(destination_pod=["other/db"])
    assert found(channel, whitelist=[wanted]) == list(range(320, 352))
    assert found(channel, whitelist=[wanted], number=5) == list(range(347, 352))
    assert len(found(channel, blacklist=[wanted])) == 640
    (one,) = ask(channel, since=330, until=330)
    (again,) = ask(channel, whitelist=[flow_pb2.FlowFilter(uuid=[one.flow.uuid])])
    assert again == one
    (masked,) = ask(channel, since=330, until=330, field_mask={"paths": ["destination.pod_name"]})
    assert masked.flow == flow_pb2.Flow(destination=flow_pb2.Endpoint(pod_name="db-0"))


def test_an_answer_is_the_same_from_the_ring_and_from_a_file(kept: Kept, channel: grpc.Channel) -> None:
    kept.append(64)
    before = list(ask(channel))
    kept.append(512)
    assert list(ask(channel, number=64, first=True)) == before


def test_a_follower_begins_in_the_past(kept: Kept, channel: grpc.Channel) -> None:
    kept.append(512)
    stream = ask(channel, since=300, follow=True)
    ports = [next(stream).flow.l4.TCP.source_port - 10_000 for _ in range(212)]
    assert ports == list(range(300, 512))
    kept.append(32)
    assert [next(stream).flow.l4.TCP.source_port - 10_000 for _ in range(32)] == list(range(512, 544))
    stream.cancel()


def test_no_flow_twice_and_none_missing_while_more_come(kept: Kept, channel: grpc.Channel) -> None:
    kept.append(512)
    stop = threading.Event()

    def more() -> None:
        while not stop.is_set() and kept.count < 1500:
            kept.append(32)

    writer = threading.Thread(target=more)
    writer.start()
    try:
        for _ in range(3):
            responses = list(ask(channel))
            assert not [r for r in responses if r.HasField("lost_events")]
            numbers = [r.flow.l4.TCP.source_port - 10_000 for r in responses]
            assert numbers == list(range(len(numbers))) and len(numbers) >= 512
            newest = found(channel, number=300)
            assert newest == list(range(newest[0], newest[0] + 300))
    finally:
        stop.set()
        writer.join()


def test_a_damaged_file_is_one_note(kept: Kept, channel: grpc.Channel, tmp_path: Path) -> None:
    kept.append(512)
    path = sorted((tmp_path / "history").glob("flows-*"))[2]
    path.write_bytes(path.read_bytes()[:700])
    responses = list(ask(channel))
    (note,) = [r.lost_events for r in responses if r.HasField("lost_events")]
    assert note.num_events_lost == 32
    assert note.first.ToNanoseconds() == WALL + 64_000_000
    assert len(responses) == 512 - 32 + 1


def test_too_many_answers_are_refused_in_words(
    kept: Kept, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_READERS", 0)
    kept.append(512)
    with pytest.raises(grpc.RpcError) as error:
        found(channel)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ask again" in error.value.details()
