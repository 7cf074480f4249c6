"""Denials in answers to who asks for policy verdicts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cilia.cli import flows as printed
from cilia.hubble.convert import Converter
from cilia.hubble.export.exporter import Exporter
from cilia.hubble.export.settings import ExportSettings, filter_text
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.kit.clock import ManualClock
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import DENY_DB, DROP, NODE, WALL, MessageSink, events, store

ROWS: list[dict[str, Any]] = [
    {"kind": 3, "ingress_match": 2},
    DROP | {"file": 1, "line": 7},
    DROP | {"reason": 181, "direction": 2, "egress_cookie": DENY_DB, "egress_match": 1},
    {"kind": 1, "verdict": 2, "reason": 132, "state": 0},
    {"kind": 3, "verdict": 4},
]
DROPS, TRACES, VERDICTS = 1, 4, 5
Filter = dict[str, Any]


def asked(*kinds: int, **more: Any) -> Filter:
    return {"event_type": [{"type": kind} for kind in kinds], **more}


class Reader(MessageSink):
    """A sink that remembers."""

    def __init__(self) -> None:
        self.got: list[flow_pb2.Flow] = []

    async def send(self, messages: Sequence[bytes]) -> None:
        self.got += [observer_pb2.GetFlowsResponse.FromString(each).flow for each in messages]


def answer(*whitelist: Filter, blacklist: Sequence[Filter] = ()) -> list[flow_pb2.Flow]:
    flows, reader = store(), Reader()
    flows.append([events(*ROWS)], offset=WALL)
    observer = Observer(flows, NODE, ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9 + 100))
    everything = observer_pb2.GetFlowsRequest()
    request = observer_pb2.GetFlowsRequest(whitelist=whitelist, blacklist=blacklist)  # type: ignore[arg-type]
    asyncio.run(observer.get_flows(request.SerializeToString(), reader))
    found, reader.got = reader.got, []
    asyncio.run(observer.get_flows(everything.SerializeToString(), reader))
    assert [each.event_type.type for each in reader.got] == [5, 1, 1, 1, 5], "others see them as they are"
    return found


def test_a_denial_is_a_verdict_to_who_asks_for_verdicts() -> None:
    allowed, default, denied, audited = answer(asked(VERDICTS))
    assert [each.event_type.type for each in (allowed, default, denied, audited)] == [VERDICTS] * 4
    assert (default.verdict, default.drop_reason_desc) == (flow_pb2.DROPPED, flow_pb2.POLICY_DENIED)
    assert [each.name for each in default.ingress_denied_by] == ["allow-web", "isolate"]
    assert (default.event_type.sub_type, default.HasField("file")) == (0, False)
    assert (denied.policy_match_type, denied.traffic_direction) == (1, flow_pb2.EGRESS)
    lines = [f"{printed.what(each)} {printed.outcome(each)}" for each in (default, denied)]
    assert lines == ["policy-verdict:none INGRESS DENIED", "policy-verdict:L3-Only EGRESS DENIED"]


def test_with_a_verdict_asked_for_too() -> None:
    found = answer(asked(VERDICTS, verdict=[flow_pb2.DROPPED]))
    assert [(each.event_type.type, each.verdict) for each in found] == [(VERDICTS, flow_pb2.DROPPED)] * 2


@pytest.mark.parametrize(
    ("whitelist", "types"),
    [
        ([asked(VERDICTS, DROPS)], [5, 1, 1, 1, 5]),
        ([asked(VERDICTS), asked(DROPS)], [5, 1, 1, 1, 5]),
        ([asked(VERDICTS), {"verdict": [flow_pb2.DROPPED]}], [5, 1, 1, 1, 5]),
        ([asked(VERDICTS), asked(TRACES)], [5, 5, 5, 5]),
        ([asked(VERDICTS, TRACES)], [5, 5, 5, 5]),
        ([asked(DROPS)], [1, 1, 1]),
        ([asked(TRACES)], []),
        ([], [5, 1, 1, 1, 5]),
    ],
)
def test_who_may_see_drops_sees_drops(whitelist: list[Filter], types: list[int]) -> None:
    assert [each.event_type.type for each in answer(*whitelist)] == types


def test_verdicts_left_out_leave_drops() -> None:
    assert [each.event_type.type for each in answer(blacklist=[asked(VERDICTS)])] == [1, 1, 1]


def test_files_of_verdicts_have_denials_as_verdicts(tmp_path: Path) -> None:
    path, flows = tmp_path / "verdicts.log", store()
    settings = ExportSettings(path=str(path), include=(filter_text({"event_type": [{"type": VERDICTS}]}),))
    exporter = Exporter(settings, flows, NODE, Converter(flows, NODE), ManualClock())
    flows.append([events(*ROWS)], offset=WALL)
    asyncio.run(exporter.finish())
    told = [json.loads(line)["flow"] for line in path.read_text().splitlines()]
    assert [(each["event_type"]["type"], each["verdict"]) for each in told] == [
        (5, "FORWARDED"),
        (5, "DROPPED"),
        (5, "DROPPED"),
        (5, "AUDIT"),
    ]
