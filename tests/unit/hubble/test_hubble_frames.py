"""Answers as columns: the same as the protobuf library reads, the same as sealed files have."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.hubble.client import Client
from cilia.hubble.convert import Converter
from cilia.hubble.frames.decode import Decoder
from cilia.hubble.frames.frame import FrameError, fetch
from cilia.hubble.frames.schema import SCHEMA
from cilia.hubble.frames.sql import QueryError, query
from cilia.hubble.frames.wire import Buffer, Malformed
from cilia.hubble.history import codec
from cilia.hubble.history.friendly import friendly_columns
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from tests.support.hubble import (
    ALLOW_WEB,
    DEFAULT_DENY,
    DENY_DB,
    NODE,
    OPEN,
    WALL,
    Beside,
    events,
    flow,
    store,
)

pytestmark = pytest.mark.timeout(60)

Response = observer_pb2.GetFlowsResponse


def decoded(*responses: Response | bytes) -> list[dict[str, object]]:
    decoder = Decoder()
    decoder.add([each if isinstance(each, bytes) else each.SerializeToString() for each in responses])
    table = decoder.table()
    assert table.schema == SCHEMA
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def some_events(count: int) -> list[dict[str, object]]:
    chance = random.Random(11)
    rules = (0, ALLOW_WEB, DEFAULT_DENY, DENY_DB, OPEN)
    return [
        flow(
            number,
            kind=chance.choice((1, 2, 3, 4)),
            verdict=chance.choice((0, 1, 2, 4, 5)),
            reason=chance.choice((0, 133, 181, 158)),
            direction=chance.choice((0, 1, 2)),
            point=chance.choice((0, 2, 3, 4, 101)),
            state=chance.choice((0, 1, 2, 3)),
            flags=chance.choice((0, 1, 4, 5)),
            protocol=chance.choice((1, 6, 17, 58, 132, 47)),
            tcp_flags=chance.randrange(256),
            icmp_type=chance.choice((0, 3, 8, 128)),
            source=chance.choice(("10.0.1.5", "10.0.2.7", "192.0.2.80", "fd00::1:5")),
            original_source=chance.choice(("::", "10.0.1.6")),
            original_source_port=chance.choice((0, 77)),
            destination_identity=chance.choice((2, 1234, 5000)),
            egress_cookie=chance.choice(rules),
            ingress_cookie=chance.choice(rules),
            service=chance.choice((0, 9, 10)),
            ifindex=chance.choice((0, 7, 8)),
            proxy_port=chance.choice((0, 15001)),
            socket_cookie=chance.choice((0, 1 << 63, 12)),
        )
        for number in range(count)
    ]


def test_an_answer_and_a_file_have_the_same_columns() -> None:
    flows = store(1024)
    flows.append([events(*some_events(1000))], offset=WALL)
    block = codec.detach(flows.spans(0, 1000), flows, [])
    columns = friendly_columns(block.rows, block.known, NODE.name)
    assert columns.pop("bytes").type == pa.uint32()
    file = pa.table(columns, SCHEMA).to_pylist()
    answer = decoded(*Converter(flows, NODE).responses(block.rows))
    for ours, theirs in zip(answer, file, strict=True):
        assert ours == theirs


def test_fields_of_another_server_come_in_any_order_and_kind() -> None:
    full = flow_pb2.Flow(
        uuid="short", verdict=flow_pb2.DROPPED, drop_reason_desc=flow_pb2.POLICY_DENIED, node_name="k/one"
    )
    full.time.FromNanoseconds(5)
    full.source.namespace, full.source.pod_name = "shop", "web"
    full.source.workloads.add(name="web", kind="Deployment")
    full.source_names.extend(["a.example", "b.example"])
    full.l4.UDP.source_port = 53
    full.IP.ipVersion, full.IP.destination = flow_pb2.IPv6, "fd00::1"
    full.ingress_denied_by.add(name="deny", namespace="shop")
    full.ingress_denied_by.add(name="everywhere")
    full.l7.dns.query = "x."
    full.event_type.type = 129
    bare = flow_pb2.Flow()
    rows = decoded(Response(flow=full, node_name="k/one"), Response(flow=bare))
    assert rows[0]["source_names"] == "a.example,b.example"
    assert rows[0]["source_workload"] == "Deployment/web"
    assert (rows[0]["protocol"], rows[0]["source_port"], rows[0]["destination_port"]) == ("UDP", 53, 0)
    assert (rows[0]["ip_version"], rows[0]["destination_ip"]) == (6, "fd00::1")
    assert rows[0]["ingress_denied_by"] == rows[0]["policies"] == "shop/deny,everywhere"
    assert (rows[0]["type"], rows[0]["drop_reason"], rows[0]["uuid"]) == ("l7", "POLICY_DENIED", "short")
    named = {name: value for name, value in rows[1].items() if value is not None}
    assert set(named) == {"time", "encrypted", "source_identity", "destination_identity"}


def test_notes_between_flows_are_counted() -> None:
    decoder = Decoder()
    lost = Response(lost_events=flow_pb2.LostEvent(num_events_lost=7))
    gone = Response(
        node_status=relay_pb2.NodeStatusEvent(
            state_change=relay_pb2.NODE_UNAVAILABLE, node_names=["a", "b"], message="no route"
        )
    )
    decoder.add(
        [each.SerializeToString() for each in (lost, gone, gone, lost, Response(flow=flow_pb2.Flow()))]
    )
    assert decoder.completeness.lost == 14
    assert decoder.completeness.unavailable == ["a", "b"]
    assert decoder.count == decoder.table().num_rows == 1


def test_no_flows_have_columns_too() -> None:
    assert Decoder().table().schema == SCHEMA


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 400), st.integers(0, (1 << 64) - 1)), max_size=6), max_size=8)
)
def test_numbers_read_back(messages: list[list[tuple[int, int]]]) -> None:
    def varint(value: int) -> bytes:
        out = b""
        while value >= 0x80:
            out, value = out + bytes((value & 0x7F | 0x80,)), value >> 7
        return out + bytes((value,))

    encoded = [b"".join(varint(field << 3) + varint(value) for field, value in each) for each in messages]
    buffer, ends, place = Buffer(b"".join(encoded)), [], 0
    for each in encoded:
        place += len(each)
        ends.append(place)
    import numpy as np

    found = buffer.fields(np.array([0, *ends[:-1]], np.int64)[: len(ends)], np.array(ends, np.int64))
    read = {
        (f, row, int(v)) for f, o in found.items() for row, v in zip(o.rows.tolist(), o.values, strict=True)
    }
    assert read == {(field, row, value) for row, each in enumerate(messages) for field, value in each}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.integers(0, 2))
def test_garbage_is_refused_or_read_never_worse(pieces: list[bytes], wrapped: int) -> None:
    def block(data: bytes) -> bytes:
        return b"\x0a" + bytes((len(data),)) + data

    for _ in range(wrapped):
        pieces = [block(piece) for piece in pieces]
    decoder = Decoder()
    try:
        decoder.add(pieces)
        decoder.table()
    except (Malformed, ValueError):
        pass


# -- over a server ------------------------------------------------------------------------------------------


def test_a_frame_is_what_a_server_answers(running: Beside) -> None:
    running.append(*(flow(number) for number in range(100)))
    with Client(running.target) as client:
        frame = fetch(client, observer_pb2.GetFlowsRequest(number=40))
        assert len(frame) == 40
        assert frame.arrow()["source_port"].to_pylist() == list(range(10_060, 10_100))
        assert "40 rows of time, uuid" in repr(frame)
        counted = frame.sql("select source_pod, count(*) as flows from flows group by all")
        assert counted.arrow().to_pylist() == [{"source_pod": "client-5f", "flows": 40}]
        assert frame.pandas().groupby("verdict", observed=True).size().to_dict() == {"FORWARDED": 40}
        assert frame.polars()["destination_pod"].unique().to_list() == ["server-0"]
        with pytest.raises(FrameError, match="narrow it"):
            fetch(client, observer_pb2.GetFlowsRequest(), limit=50)
        heard: list[int] = []
        assert len(fetch(client, observer_pb2.GetFlowsRequest(), progress=heard.append)) == heard[-1] == 100


# -- SQL ----------------------------------------------------------------------------------------------------

TABLE = pa.table({"name": ["a", "b"], "number": [1, 2]})
OUTSIDE = TABLE


def test_sql_reads_the_table_it_is_given() -> None:
    assert query(TABLE, "select sum(number) as n from flows").to_pylist() == [{"n": 3}]
    assert query(TABLE, "with a as (from flows) select max(name) as m from a").to_pylist() == [{"m": "b"}]


@pytest.mark.parametrize(
    "statement",
    [
        "select * from read_csv('/etc/hostname')",
        "select * from '/etc/hostname'",
        "select * from glob('/*')",
        "select * from OUTSIDE",
        "copy flows to 'out.csv'",
        "export database 'out'",
        "attach 'out.db'",
        "install httpfs",
        "load 'x.duckdb_extension'",
        "set enable_external_access = true",
        "reset memory_limit",
        "create table other as from flows",
        "select 1; select 2",
        "",
        "selec",
        "select nothing from flows",
    ],
)
def test_sql_has_no_way_out(statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError) as error:
        query(TABLE, statement)
    assert len(str(error.value)) > 20 and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_sql_takes_neither_all_memory_nor_all_day() -> None:
    many = "select count(*) from flows, range(1000000) a, range(1000000) b where a.range * b.range = 7"
    with pytest.raises(QueryError, match="seconds"):
        query(TABLE, many, seconds=0.2)
    with pytest.raises(QueryError, match=r"[Mm]emory"):
        query(TABLE, "select list(md5(range::text)) from range(50000000)", memory="40MB", seconds=20)


TIMES = pa.table({"time": pa.array([1], pa.timestamp("ns", "UTC"))})


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("select 1 from flows where time > now()", r"write time::timestamptz, as in"),
        ("select date_trunc('minute', time) from flows", r"write time::timestamptz"),
        ("select nothing from flows", r"all columns: select column_name from \(describe flows\)"),
    ],
)
def test_sql_says_what_to_write_instead(statement: str, hint: str) -> None:
    with pytest.raises(QueryError, match=hint) as error:
        query(TIMES, statement)
    assert "Candidate functions" not in str(error.value)


def test_the_hints_of_sql_work() -> None:
    query(TIMES, "select 1 from flows where time::timestamptz > now() - interval 5 minute")
    assert query(TIMES, "select column_name from (describe flows)").num_rows == 1
