"""The text of --hubble-metrics and the YAML file say the same; what can't be is refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.hubble.metrics.follower import ConfigFollower
from cilia.hubble.metrics.options import METRICS, MetricConfig, MetricsError, parse, parse_yaml
from cilia.proto.flow import flow_pb2


def test_all_metrics_without_options() -> None:
    names = [name for name in METRICS if name != "http"]
    assert [config.options.name for config in parse(" ".join(names))] == names


def test_metrics_may_be_separated_by_commas() -> None:
    text = "dns:query;ignoreAAAA,drop:labelsContext=source_pod,destination_pod,tcp"
    dns, drop, tcp = (config.options for config in parse(text))
    assert dns.switches == {"query", "ignoreAAAA"}
    assert drop.labels == ("source_pod", "destination_pod")
    assert (tcp.name, tcp.labels) == ("tcp", ())


def test_contexts_keep_their_order_and_labels_have_one() -> None:
    (config,) = parse("flow:sourceContext=workload|Pod|reserved-identity;"
                      "destinationIngressContext=pod;labelsContext=traffic_direction,source_ip")  # fmt: skip
    assert config.options.context("sourceContext") == ("workload", "pod", "reserved-identity")
    assert config.options.context("destinationIngressContext") == ("pod",)
    assert config.options.context("destinationContext") == ()
    assert config.options.labels == ("source_ip", "traffic_direction")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("drops", "no metric 'drops'"),
        ("drop:sourceContext=pods", "it was given 'pods'"),
        ("drop:sourceContext=", "it was given nothing"),
        ("drop:labelsContext=source_pod,zone", "it was given 'zone'"),
        ("drop:query", "has no option 'query'"),
        ("drop drop", "there twice"),
        ("http httpV2", "keep httpV2"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(MetricsError, match=words):
        parse(text)


def test_switches_of_single_metrics() -> None:
    (world, http) = (c.options for c in parse("flows-to-world:any-drop;port;syn-only httpV2:exemplars=true"))
    assert world.switches == {"any-drop", "port", "syn-only"}
    assert http.switches == {"exemplars"}
    (http,) = (c.options for c in parse("httpV2:exemplars=false"))
    assert http.switches == frozenset()


YAML = b"""
metrics:
- name: drop
  contextOptions:
  - name: sourceContext
    values: [pod, reserved-identity]
  - name: labelsContext
    values: [source_namespace, destination_namespace]
  includeFilters:
  - source_pod: ["shop/"]
  - destination_pod: ["shop/"]
    verdict: [DROPPED]
  excludeFilters:
  - source_ip: [192.0.2.0/24]
- name: tcp
"""


def test_the_file_says_what_the_flag_says() -> None:
    drop, tcp = parse_yaml(YAML)
    text = "drop:sourceContext=pod|reserved-identity;labelsContext=source_namespace,destination_namespace tcp"
    assert [drop.options, tcp.options] == [config.options for config in parse(text)]
    include, exclude = drop.filters.messages()
    assert [list(message.source_pod) for message in include] == [["shop/"], []]
    assert list(include[1].verdict) == [flow_pb2.DROPPED]
    assert [list(message.source_ip) for message in exclude] == [["192.0.2.0/24"]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"metrics: [", "not YAML"),
        (b"metrics: {}", "no list of metrics"),
        (b"metrics: [{contextOptions: []}]", "no metric ''"),
        (b"metrics: [{name: drop}, {name: drop}]", "there twice"),
        (b"metrics: [{name: drop, includeFilters: [{pod: [a]}]}]", "can't be read"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"metrics: &a [*a, *a]", "stands for what it is in"),
    ],
)
def test_a_file_that_is_wrong(content: bytes, words: str) -> None:
    with pytest.raises(MetricsError, match=words):
        parse_yaml(content)


def test_an_empty_file_has_no_metrics() -> None:
    assert parse_yaml(b"") == ()


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        assert isinstance(parse(text), tuple)
    except MetricsError as error:
        assert str(error)


@given(st.binary(max_size=60))
def test_any_file_is_understood_or_refused(content: bytes) -> None:
    try:
        assert isinstance(parse_yaml(content), tuple)
    except MetricsError as error:
        assert str(error)


def test_a_changed_file_is_taken_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    taken: list[tuple[MetricConfig, ...]] = []
    follower = ConfigFollower(path, taken.append)
    follower.look()
    assert "can't be read" in follower.problem
    path.write_bytes(YAML)
    follower.look()
    follower.look()
    assert [len(configs) for configs in taken] == [2]
    assert follower.problem == ""
    path.write_bytes(b"metrics: [{name: drops}]")
    follower.look()
    follower.look()
    assert "no metric 'drops'" in follower.problem
    assert len(taken) == 1
    # As Kubernetes changes the files of a ConfigMap.
    (tmp_path / "next.yaml").write_bytes(b"metrics: [{name: drop}]")
    path.unlink()
    path.symlink_to(tmp_path / "next.yaml")
    follower.look()
    follower.look()
    assert [len(configs) for configs in taken] == [2, 1]
    assert follower.problem == ""
