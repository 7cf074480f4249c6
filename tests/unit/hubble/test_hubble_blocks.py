"""Many flows in one run of bytes: where messages begin, what is their own, and what is shared."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.hubble.blocks import PORT_WORDS, Packer, base128, hex_digits, split, timestamps
from cilia.hubble.convert import Converter
from cilia.hubble.rpc.messages import Unframer, frame
from cilia.proto.flow.flow_pb2 import TCP
from cilia.proto.observer.observer_pb2 import GetFlowsResponse
from tests.support.hubble import DTYPE, NODE, WALL, events, flow, store


def test_a_block_is_what_a_client_reads_as_single_messages() -> None:
    flows = store()
    flows.append(
        [events(flow(0), flow(1, protocol=1), flow(2, protocol=17), flow(3, protocol=99))], offset=WALL
    )
    (rows,) = flows.spans(0, flows.head)
    block = Converter(flows, NODE).block(rows)
    messages = Unframer().feed(block)
    assert messages == split(block) and frame(messages) == block
    read = [GetFlowsResponse.FromString(message) for message in messages]
    assert [each.flow.l4.WhichOneof("protocol") for each in read] == ["TCP", "ICMPv4", "UDP", None]
    assert [each.time.ToNanoseconds() for each in read] == rows.wall.tolist()
    assert len({each.flow.uuid for each in read}) == 4


def test_no_rows_are_no_bytes() -> None:
    flows = store()
    flows.append([events({})], offset=WALL)
    (rows,) = flows.spans(0, 1)
    assert Converter(flows, NODE).block(rows.where(slice(0, 0))) == b""


def test_sockets_stand_between_what_is_shared() -> None:
    flows = store()
    flows.append([events(flow(0), flow(1, kind=4, point=1, socket_cookie=9, cgroup=8))], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    plain, socket = map(GetFlowsResponse.FromString, split(Converter(flows, NODE).block(rows)))
    assert (plain.flow.socket_cookie, socket.flow.socket_cookie, socket.flow.cgroup_id) == (0, 9, 8)
    assert plain.node_name == socket.node_name == NODE.name


@pytest.mark.parametrize(
    "value", [0, 1, 127, 128, 16_383, 16_384, 65_535, (1 << 28) - 1, 1 << 28, (1 << 35) - 1]
)
def test_digits_of_a_number_stand_in_a_byte_each(value: int) -> None:
    digits = int(base128(np.array([value]))[0]).to_bytes(8, "little")
    assert max(digits) < 128 and digits[5:] == bytes(3)
    assert sum(digit << 7 * place for place, digit in enumerate(digits)) == value


@pytest.mark.parametrize("port", [0, 1, 127, 128, 16_383, 16_384, 65_535])
def test_a_port_reads_as_itself(port: int) -> None:
    read = TCP.FromString((int(PORT_WORDS[port]) + 0x08).to_bytes(4, "little"))
    assert read.source_port == port


@pytest.mark.parametrize("moment", [0, 999_999_999, WALL, 1 << 62])
def test_a_time_reads_as_itself(moment: int) -> None:
    assert read_times([moment]) == [moment]


def test_times_of_many_seconds_read_as_themselves() -> None:
    moments = [WALL, WALL - 1, WALL + 999_999_999, 0, WALL + 3_600_000_000_007]
    assert read_times(moments) == moments
    assert read_times([-5, WALL]) == [0, WALL]


def read_times(moments: list[int]) -> list[int]:
    stamps = timestamps(np.array(moments))
    return [Timestamp.FromString(stamp.tobytes()).ToNanoseconds() for stamp in stamps]


def test_numbers_of_rows_are_twelve_digits() -> None:
    digits = hex_digits(np.array([0, 0x123456789ABC]))
    assert [row.tobytes() for row in digits] == [b"000000000000", b"123456789abc"]


def test_a_key_differs_with_each_of_its_fields_and_columns() -> None:
    packer = Packer(("source", "destination", "vni", "kind"), [("device", "u4")])
    devices = np.array([1, 1, 1, 1, 1, 2], np.uint32)
    rows = events({}, {}, {"destination": "10.0.9.9"}, {"vni": 3}, {"kind": 1}, {})
    assert rows.dtype == DTYPE
    keys = packer.pack(rows, [devices])
    assert keys[0] == keys[1] and len(set(keys)) == 5
    assert packer.pack(events({"source_port": 9}), [devices[:1]]) == keys[:1]
