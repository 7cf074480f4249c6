"""A hundred clients that do not read: the one that reads gets everything, and memory stays where it is."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from cilia.hubble.client import Client
from cilia.hubble.rpc.messages import Unframer, frame
from cilia.proto.observer.observer_pb2 import GetFlowsRequest, GetFlowsResponse
from tests.support.hubble import WALL, Beside, beside, events, flow
from tests.support.hubble_raw import GET_FLOWS, path
from tests.support.machine import resident
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

SLOW = 100
BATCH, TOTAL = 500, 100_000
ROOM = 48 << 20
"""Bytes the process may grow by: a chunk of answers for each slow client, and what allocators keep."""
WINDOW = 1 << 30
"""Bytes a client promises to take, so that only its socket holds the server back."""


class Sleeper:
    """Follows, and reads nothing until told."""

    def __init__(self, target: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(target))
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self.h2.increment_flow_control_window(WINDOW)
        self.stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(self.stream, path(GET_FLOWS))
        self.h2.send_data(
            self.stream, frame([GetFlowsRequest(follow=True).SerializeToString()]), end_stream=True
        )
        self.socket.sendall(self.h2.data_to_send())

    def read(self, total: int) -> tuple[int, int]:
        """Flows and lost events until they add up to `total`."""
        self.socket.settimeout(30)
        unframer, flows, lost = Unframer(), 0, 0
        while flows + lost < total:
            for event in self.h2.receive_data(self.socket.recv(1 << 18)):
                if isinstance(event, h2.events.DataReceived):
                    for message in unframer.feed(event.data or b""):
                        response = GetFlowsResponse.FromString(message)
                        lost += response.lost_events.num_events_lost
                        flows += response.HasField("flow")
            self.socket.sendall(self.h2.data_to_send())
        return flows, lost


def followers(running: Beside) -> int:
    return running.call(lambda: len(running.store.listeners))


def test_slow_clients_cost_nobody_anything(tmp_path: Path) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(beside(tmp_path / "hubble.sock", capacity=16_384, real_time=True))
        fast = stack.enter_context(Client(str(running.path)))
        seen: list[int] = [0, 0]

        def read() -> None:
            for response in fast.get_flows(GetFlowsRequest(follow=True)):
                seen[0] += response.HasField("flow")
                seen[1] += response.lost_events.num_events_lost
                if sum(seen) == TOTAL:
                    return

        reader = threading.Thread(target=read)
        reader.start()
        sleepers = [Sleeper(running.path) for _ in range(SLOW)]
        for sleeper in sleepers:
            stack.callback(sleeper.socket.close)
        until(lambda: followers(running) == SLOW + 1, "all followers")
        batch = events(*(flow(number) for number in range(BATCH)))
        before = resident()
        for stored in range(BATCH, TOTAL + 1, BATCH):
            running.call(lambda: running.store.append([batch], offset=WALL))
            until(lambda stored=stored: sum(seen) > stored - 8192, "the fast client")  # type: ignore[misc]
        reader.join(60)
        assert seen == [TOTAL, 0]
        assert resident() - before < ROOM
        assert followers(running) == SLOW + 1
        # Who wakes up late learns exactly what it missed.
        for sleeper in sleepers[:3]:
            flows, lost = sleeper.read(TOTAL)
            assert flows + lost == TOTAL and lost > 0
        for sleeper in sleepers:
            sleeper.socket.close()
        fast.close()
        until(lambda: followers(running) == 0, "their leaving")


def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with beside(tmp_path / "hubble.sock", capacity=16_384) as running:
        batch = events(*(flow(number) for number in range(BATCH)))
        for _ in range(30):
            running.call(lambda: running.store.append([batch], offset=WALL))
        for _ in range(20):
            client = Client(str(running.path))
            next(client.get_flows(GetFlowsRequest()))
            client.close()
        until(lambda: running.call(lambda: running.server.clients) == 0, "their leaving")
        assert running.call(lambda: running.server.calls) == 0
