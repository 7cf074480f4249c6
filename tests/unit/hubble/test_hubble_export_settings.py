"""What exporters are told: upstream's file and flags, and one sentence for what is wrong with them."""

from __future__ import annotations

import datetime
import json

import pytest

from cilia.hubble.export.settings import (
    ExportError,
    ExportSettings,
    filter_message,
    filters,
    read_file,
)
from cilia.proto.flow import flow_pb2

FILE = """
flowLogs:
- name: "everything"
  filePath: "/var/log/flows/everything.log"
  fieldMask: []
  fieldAggregate: []
  aggregationInterval: 0s
  includeFilters: []
  excludeFilters: []
  fileMaxSizeMb: 0
  fileMaxBackups: 0
  fileCompress: false
  end: "2026-12-09T23:59:59-07:00"
- name: "some"
  filePath: "/var/log/flows/some.log"
  fieldMask: ["source.namespace", "source.pod_name", "verdict"]
  includeFilters:
  - source_pod: ["default/"]
    event_type:
    - type: 1
  - destination_pod: ["frontend/nginx"]
  fileMaxSizeMb: 20
  fileMaxBackups: 3
  fileCompress: true
  end: 2026-12-09T00:00:00Z
- name: "counted"
  filePath: stdout
  fieldAggregate: ["source", "verdict"]
  aggregationInterval: 1m30s
  excludeFilters:
  - destination_pod: ["ingress/"]
"""


def test_a_file_as_users_have_it() -> None:
    found = read_file(FILE)
    assert list(found) == ["everything", "some", "counted"]
    everything, some, counted = found.values()
    assert (everything.max_size_mb, everything.max_backups, everything.compress) == (10, 5, False)
    assert everything.end == datetime.datetime.fromisoformat("2026-12-10T06:59:59+00:00").timestamp()
    assert everything.include == everything.exclude == everything.mask == ()
    assert [filter_message(each) for each in some.include] == [
        flow_pb2.FlowFilter(source_pod=["default/"], event_type=[flow_pb2.EventTypeFilter(type=1)]),
        flow_pb2.FlowFilter(destination_pod=["frontend/nginx"]),
    ]
    assert (some.max_size_mb, some.max_backups, some.compress) == (20, 3, True)
    assert some.end == datetime.datetime(2026, 12, 9, tzinfo=datetime.UTC).timestamp()
    assert (counted.path, counted.aggregate, counted.interval) == ("stdout", ("source", "verdict"), 90.0)


@pytest.mark.parametrize("text", ["", "flowLogs: []", "flowLogs:", "{}", "# nothing"])
def test_a_file_may_name_no_exporter(text: str) -> None:
    assert read_file(text) == {}


ENTRY = "flowLogs: [{{name: a, filePath: /a, {}}}]"


def aliases(most: int, use: str) -> str:
    """An entry whose aliases *a1, *a2, ... up to `most` stand for ten, a hundred, ... words."""
    lists = ["&a1 [" + ", ".join(["word"] * 10) + "]"]
    lists += [f"&a{size} [" + ", ".join([f"*a{size - 1}"] * 10) + "]" for size in range(2, most + 1)]
    return ENTRY.format(f"end: [{', '.join(lists)}], {use}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("flowLogs: [", "not YAML"),
        ("- a", "one key, flowLogs"),
        ("flowlogs: []", "one key, flowLogs"),
        ("flowLogs: {a: b}", "must be a list"),
        ("flowLogs: [a]", r"flowLogs\[0\] is not a mapping"),
        ("flowLogs: [{name: a}]", r"flowLogs\[0\]: filePath is required"),
        ("flowLogs: [{filePath: /a}]", "name is required"),
        ("flowLogs: [{name: a, filePath: a.log}]", "path from the root"),
        ("flowLogs: [{name: a, filePath: /a}, {name: a, filePath: /b}]", "'a' is taken"),
        ("flowLogs: [{name: static, filePath: /a}]", "'static' is taken"),
        ("flowLogs: [{name: a, filePath: /a}, {name: b, filePath: /a}]", r"\[1\]: /a is written by another"),
        (ENTRY.format("fieldMark: []"), "unknown key 'fieldMark'"),
        (ENTRY.format("fieldMask: source"), "fieldMask must be a list"),
        (ENTRY.format("fieldMask: [sauce]"), "no flow has the field 'sauce'"),
        (ENTRY.format("fieldMask: [{a: b}]"), "list of paths"),
        (ENTRY.format("fieldAggregate: [source]"), "need an aggregation interval"),
        (ENTRY.format("aggregationInterval: soon"), "'soon' is no length of time"),
        (ENTRY.format("aggregationInterval: 5 s"), "'5 s' is no length of time"),
        (ENTRY.format("includeFilters: [{pod: [x]}]"), "is not a filter"),
        (ENTRY.format("includeFilters: [x]"), "'x' is not a filter"),
        (ENTRY.format("excludeFilters: [{verdict: [MAYBE]}]"), "is not a filter"),
        (ENTRY.format("fileMaxSizeMb: -1"), "not negative"),
        (ENTRY.format("fileMaxBackups: many"), "must be a number"),
        (ENTRY.format("fileCompress: yes please"), "true or false"),
        (ENTRY.format("end: tomorrow"), "'tomorrow' is not a time"),
        ("a: " + "x" * (1 << 20), "more than 1 MiB"),
        ("flowLogs: " + "[" * 5000 + "]" * 5000, "nested deeper than 200"),
        (aliases(9, "includeFilters: [*a9]"), "more than 100000 values: .* fewer aliases"),
        (aliases(3, "includeFilters: [*a3]"), r"\.\.\. is not a filter"),
        (aliases(3, "includeFilters: [{source_pod: *a3}]"), r"\.\.\. is not a filter"),
        ("flowLogs: &a [*a]", "stands for what it is in"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence) as caught:
        read_file(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        '{"source_pod":["a/"]} {"verdict":["DROPPED"]}',
        '{"source_pod":["a/"]}, {"verdict":["DROPPED"]}',
        '[{"sourcePod":["a/"]},{"verdict":[2]}]',
        '  {"source_pod":["a/"]}\n{"verdict":["DROPPED"]}\n',
    ],
)
def test_filters_of_a_flag_stand_one_after_the_other(text: str) -> None:
    assert [json.loads(each) for each in filters(text)] == [
        {"source_pod": ["a/"]},
        {"verdict": ["DROPPED"]},
    ]


@pytest.mark.parametrize("text", ['{"source_pod":', "drops", '"x"', '{"source_pods":["a/"]}', "{} }"])
def test_filters_that_are_none(text: str) -> None:
    with pytest.raises(ExportError, match="is not a filter"):
        filters(text)


def test_no_filters() -> None:
    assert filters("") == filters(" \n") == ()


def test_files_have_a_size() -> None:
    with pytest.raises(ExportError, match="at least 1 MiB"):
        ExportSettings(path="/a", max_size_mb=0).check()
