"""Flows as JSON mean what the library says they mean, both ways."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format

from cilia.cli import flow_json
from cilia.cli.flow_json import Reader, Writer, by_library, to_json
from cilia.hubble.convert import Converter
from cilia.proto.observer import observer_pb2
from tests.support.hubble import NODE, WALL, store
from tests.support.hubble_slow import random_events

Response = observer_pb2.GetFlowsResponse


def some(count: int, seed: int = 7) -> list[Response]:
    flows = store(capacity=4096)
    flows.append([random_events(count, seed=seed)], offset=WALL)
    converter = Converter(flows, NODE)
    return [
        Response.FromString(bytes(data))
        for rows in flows.spans(0, flows.head)
        for data in converter.responses(rows)
    ]


def test_random_flows_read_and_write_as_the_library_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_json, "REMEMBERED", 500)
    write, read = Writer(), Reader()
    for response in some(1500):
        line = write(response)
        assert json.loads(line) == json.loads(to_json(response))
        assert read(line) == response == by_library(line)


UNUSUAL = [
    '{"flow":{}}',
    '{"flow":{"is_reply":false,"reply":true}}',
    '{"flow":{"l7":{"http":{"code":404,"headers":[{"key":"a","value":"b\\u00e9"}]}}},"node_name":"a\\"b"}',
    '{"flow":{"source":{},"destination_names":["a","b"]},"time":"2026-11-23T10:00:00Z"}',
    '{"flow":{"ip_trace_id":{"trace_id":"18446744073709551615"},"drop_reason_desc":"POLICY_DENIED"}}',
    '{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"4","cpu":0}}',
    '{"node_status":{"state_change":"NODE_ERROR","node_names":["a"],"message":"m"}}',
]


@pytest.mark.parametrize("line", UNUSUAL)
def test_what_is_unusual(line: str) -> None:
    response = Reader()(line)
    assert response == by_library(line)
    assert json.loads(Writer()(response)) == json.loads(to_json(response))


@pytest.mark.parametrize(
    "line",
    [
        '{ "nodeName": "n", "flow": { "sourceNames": ["a"], "nobody_knows": {"x": [1]}, "Summary": "s" } }',
        '{"verdict":"DROPPED","time":"2026-11-23T10:00:00.5Z","node_name":"n"}',
        '{"flow":{"verdict":2,"uuid":"x"},"unknown":[{}]}',
    ],
)
def test_what_others_write(line: str) -> None:
    assert Reader()(line) == by_library(line)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", "7", '{"flow":7}', '{"flow":{"source":{"ID":"x"}}}', "\x00"],
)
def test_what_is_no_flow(line: str) -> None:
    with pytest.raises(json_format.ParseError):
        Reader()(line)
