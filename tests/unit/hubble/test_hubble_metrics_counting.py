"""What each metric counts, by which labels, and that nothing is counted twice or lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cilia.hubble.cursor import Cursor
from cilia.hubble.metrics import contexts
from cilia.hubble.metrics.batch import Batch
from cilia.hubble.metrics.family import Family, Limits
from cilia.hubble.metrics.forecast import forecast
from cilia.hubble.metrics.options import MetricsError, parse, parse_yaml
from cilia.hubble.metrics.processor import FlowMetrics
from cilia.hubble.store import FlowStore
from cilia.kit.clock import ManualClock
from tests.support.hubble import ALLOW_WEB, CLIENT, CLIENT6, NODE, OTHER, SERVER, WALL, events, store

WORLD: dict[str, Any] = {
    "destination": "192.0.2.80",
    "destination_identity": 2,
    "destination_endpoint": 0,
    "direction": 2,
}
DROPPED: dict[str, Any] = {"kind": 1, "verdict": 2, "reason": 133, "state": 0}


def family(flows: FlowStore, text: str, **limits: Any) -> Family:
    (config,) = parse(text)
    return Family(flows, config.options, Limits(**limits))


def count(metric: Family, flows: FlowStore, *rows: dict[str, Any], now: float = 0.0) -> dict[str, int]:
    """Store rows, count them, and tell all series as `a=1,b=2`."""
    first = flows.head
    flows.append([events(*rows)], offset=WALL)
    for span in flows.spans(first, flows.head):
        metric.take(Batch(span), now)
    return told(metric)


def told(metric: Family) -> dict[str, int]:
    names = metric.label_names
    return {
        ",".join(f"{n}={v}" for n, v in zip(names, labels, strict=True)): count
        for labels, count in metric.samples()
    }


def counted(text: str, *rows: dict[str, Any]) -> dict[str, int]:
    flows = store()
    return count(family(flows, text), flows, *rows)


def test_flows_by_type_and_verdict() -> None:
    rows: list[dict[str, Any]] = [
        {},
        {},
        {"point": 4},
        DROPPED,
        {"kind": 3, "verdict": 4},
        {"kind": 4, "point": 1, "verdict": 7},
    ]
    assert counted("flow", *rows) == {
        "protocol=TCP,type=Trace,subtype=to-endpoint,verdict=FORWARDED": 2,
        "protocol=TCP,type=Trace,subtype=to-overlay,verdict=FORWARDED": 1,
        "protocol=TCP,type=Drop,subtype=,verdict=DROPPED": 1,
        "protocol=TCP,type=PolicyVerdict,subtype=,verdict=AUDIT": 1,
        "protocol=Unknown flow,type=Unknown,subtype=7,verdict=TRANSLATED": 1,
    }


def test_drops_by_reason() -> None:
    rows = [{}, DROPPED, DROPPED, {**DROPPED, "reason": 132, "protocol": 17}]
    assert counted("drop", *rows) == {
        "reason=POLICY_DENIED,protocol=TCP": 2,
        "reason=INVALID_SOURCE_IP,protocol=UDP": 1,
    }


def test_flags_of_forwarded_packets() -> None:
    flags = [2, 18, 16, 17, 4, 20, 24]
    rows: list[dict[str, Any]] = [{"tcp_flags": bits} for bits in flags]
    rows += [{**DROPPED, "tcp_flags": 2}, {"protocol": 17, "tcp_flags": 2}]
    rows += [{"tcp_flags": 2, "flags": 2, "source": CLIENT6, "verdict": 5}]
    assert counted("tcp", *rows) == {
        "flag=SYN,family=IPv4": 1,
        "flag=SYN-ACK,family=IPv4": 1,
        "flag=FIN,family=IPv4": 1,
        "flag=RST,family=IPv4": 2,
        "flag=SYN,family=IPv6": 1,
    }


def test_messages_of_icmp() -> None:
    rows = [
        {"protocol": 1, "icmp_type": 8},
        {"protocol": 1, "icmp_type": 3, "icmp_code": 3},
        {"protocol": 58, "icmp_type": 128, "flags": 2},
        {"protocol": 1, "icmp_type": 77, "icmp_code": 1},
        {},
    ]
    assert counted("icmp", *rows) == {
        "family=IPv4,type=EchoRequest": 1,
        "family=IPv4,type=DestinationUnreachable(Port)": 1,
        "family=IPv6,type=EchoRequest": 1,
        "family=IPv4,type=77(1)": 1,
    }


def test_ports_of_requests() -> None:
    rows = [
        {},
        {"flags": 1},
        {"state": 0},
        DROPPED,
        {"protocol": 17, "destination_port": 53},
        {"protocol": 1, "icmp_type": 8, "destination_port": 0},
    ]
    assert counted("port-distribution", *rows) == {
        "protocol=TCP,port=8080": 1,
        "protocol=UDP,port=53": 1,
        "protocol=ICMPv4,port=0": 1,
    }


def test_verdicts_of_each_side_that_judged() -> None:
    rows = [
        {"ingress_cookie": ALLOW_WEB, "ingress_match": 2, "egress_cookie": 3, "egress_match": 1},
        {"ingress_cookie": ALLOW_WEB, "ingress_match": 2},
        {"ingress_cookie": ALLOW_WEB, "ingress_match": 2, "state": 2},
        {"ingress_cookie": ALLOW_WEB, "ingress_match": 2, "flags": 1},
        {},
        {**DROPPED, "ingress_match": 0},
        {**DROPPED, "reason": 181, "direction": 2, "egress_match": 4},
        {**DROPPED, "reason": 132},
        {"kind": 3, "verdict": 4, "direction": 1},
        {**DROPPED, "source_identity": 1},
    ]
    assert counted("policy", *rows) == {
        "direction=egress,match=l3-only,action=forwarded": 1,
        "direction=ingress,match=l3-l4,action=forwarded": 2,
        "direction=ingress,match=none,action=dropped": 1,
        "direction=egress,match=all,action=dropped": 1,
        "direction=ingress,match=none,action=audit": 1,
    }


def test_a_judgement_is_counted_once_whichever_events_tell_it() -> None:
    sides = {"egress_cookie": 3, "egress_match": 1, "ingress_cookie": ALLOW_WEB, "ingress_match": 2}
    apart = {**sides, "flags": 8 | 32}
    verdicts = [{**apart, "kind": 3, "direction": direction} for direction in (2, 1)]
    once = {
        "direction=egress,match=l3-only,action=forwarded": 1,
        "direction=ingress,match=l3-l4,action=forwarded": 1,
    }
    assert counted("policy", *verdicts, apart) == once
    assert counted("policy", *verdicts) == once, "traces are muted"
    assert counted("policy", {**sides, "flags": 8}) == once, "verdicts are muted"


def test_a_verdict_is_no_packet() -> None:
    verdict = {"kind": 3, "tcp_flags": 2, "direction": 1, "ingress_cookie": ALLOW_WEB}
    for metric in ("tcp", "port-distribution"):
        assert counted(metric, {"tcp_flags": 2}, verdict) == counted(metric, {"tcp_flags": 2})
    assert counted("icmp", {"kind": 3, "protocol": 1, "icmp_type": 8}) == {}
    assert counted("flows-to-world", {**WORLD, "kind": 3}) == {}


def test_flows_to_the_world() -> None:
    rows = [
        WORLD,
        {},
        {**WORLD, "flags": 1},
        {**WORLD, **DROPPED},
        {**WORLD, **DROPPED, "reason": 132},
        {**WORLD, "protocol": 17, "destination_port": 53},
    ]
    assert counted("flows-to-world", *rows) == {
        "protocol=TCP,verdict=FORWARDED": 1,
        "protocol=TCP,verdict=DROPPED": 1,
        "protocol=UDP,verdict=FORWARDED": 1,
    }
    assert counted("flows-to-world:any-drop;port;syn-only", *rows) == {
        "protocol=TCP,verdict=FORWARDED,port=8080": 1,
        "protocol=TCP,verdict=DROPPED,port=8080": 2,
    }


@pytest.mark.parametrize(
    ("context", "source", "destination"),
    [
        ("namespace", "demo", "other"),
        ("pod", "demo/client-5f", "other/db-0"),
        ("pod-name", "client-5f", "db-0"),
        ("identity", "k8s:app=client,k8s:io.kubernetes.pod.namespace=demo",
         "k8s:app=db,k8s:io.kubernetes.pod.namespace=other"),
        ("ip", CLIENT, OTHER),
        ("app", "client", "db"),
        ("workload", "demo/client", ""),
        ("workload-name|pod", "client", "other/db-0"),
        ("reserved-identity", "", ""),
        ("dns|reserved-identity|pod-name", "client-5f", "db-0"),
    ],
)  # fmt: skip
def test_contexts(context: str, source: str, destination: str) -> None:
    there = {"destination": OTHER, "destination_identity": 5000, "destination_endpoint": 0}
    rows: list[dict[str, Any]] = [there, {"protocol": 17}]
    found = counted(f"tcp:sourceContext={context};destinationContext={context}", *rows)
    assert found == {f"flag=SYN,family=IPv4,source={source},destination={destination}": 1}


def test_the_world_by_its_names() -> None:
    found = counted("flow:destinationContext=pod|dns|reserved-identity", WORLD)
    assert next(iter(found)).endswith("destination=www.example.com")
    found = counted("flow:destinationContext=pod|reserved-identity", WORLD)
    assert next(iter(found)).endswith("destination=reserved:world")


def test_contexts_by_direction() -> None:
    text = "drop:sourceContext=ip;sourceEgressContext=pod;destinationIngressContext=pod"
    found = counted(
        text, {**DROPPED, "direction": 2}, {**DROPPED, "direction": 1}, {**DROPPED, "direction": 0}
    )
    assert found == {
        "reason=POLICY_DENIED,protocol=TCP,source=demo/client-5f,destination=": 1,
        f"reason=POLICY_DENIED,protocol=TCP,source={CLIENT},destination=demo/server-0": 1,
        f"reason=POLICY_DENIED,protocol=TCP,source={CLIENT},destination=": 1,
    }


def test_labels_of_both_sides() -> None:
    labels = (
        "traffic_direction,source_ip,source_pod,source_namespace,source_workload,source_workload_kind,source_app,"
        "destination_ip,destination_pod,destination_namespace,destination_workload,destination_workload_kind,"
        "destination_app"
    )
    (found,) = counted(f"drop:labelsContext={labels}", DROPPED)
    assert found == (
        "reason=POLICY_DENIED,protocol=TCP,source_ip=10.0.1.5,source_pod=client-5f,source_namespace=demo,"
        "source_workload=client,source_workload_kind=Deployment,source_app=client,destination_ip=10.0.1.6,"
        "destination_pod=server-0,destination_namespace=demo,destination_workload=,destination_workload_kind=,"
        "destination_app=server,traffic_direction=ingress"
    )


def test_pods_that_come_later_are_named() -> None:
    flows = store()
    metric = family(flows, "flow:sourceContext=pod")
    assert len(count(metric, flows, {}, {})) == 1
    known = flows._directory
    known.pods[CLIENT] = known.pods[OTHER]  # type: ignore[attr-defined]
    known.touch()  # type: ignore[attr-defined]
    found = count(metric, flows, {}, {"source": SERVER, "source_endpoint": 102, "source_identity": 1234})
    assert sorted(key.rpartition("source=")[2] for key in found) == [
        "demo/client-5f", "demo/server-0", "other/db-0",
    ]  # fmt: skip
    assert sum(found.values()) == 4


def test_sides_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "REMEMBERED_SIDES", 3)
    flows = store()
    metric = family(flows, "flow:sourceContext=ip")
    sources = [f"192.0.2.{number}" for number in range(1, 9)]
    for _ in range(3):
        for source in sources:
            count(metric, flows, {"source": source, "source_identity": 2, "source_endpoint": 0})
    assert {key.rpartition("source=")[2]: number for key, number in told(metric).items()} == dict.fromkeys(
        sources, 3
    )


# -- the budget ---------------------------------------------------------------------------------------------


def many_ports(number: int) -> list[dict[str, Any]]:
    return [{"destination_port": 1000 + index} for index in range(number)]


def test_beyond_the_budget_sums_stay_right() -> None:
    flows = store()
    metric = family(flows, "port-distribution:sourceContext=pod", series=5)
    count(metric, flows, *many_ports(20))
    found = count(metric, flows, *many_ports(20), {"protocol": 17, "destination_port": 53})
    assert sum(found.values()) == 41
    assert len(found) == 7
    assert found["protocol=TCP,port=other,source=other"] == 30
    assert found["protocol=UDP,port=other,source=other"] == 1
    assert found["protocol=TCP,port=1004,source=demo/client-5f"] == 2
    assert metric.overflow == 31


def test_who_is_idle_makes_room_for_others() -> None:
    flows = store()
    metric = family(flows, "port-distribution", series=5, expiry=600.0)
    count(metric, flows, *many_ports(5), now=0.0)
    metric.expire(300.0)
    assert metric.size == 5, "nothing presses"
    count(metric, flows, {"destination_port": 1}, {"destination_port": 1000}, now=300.0)
    metric.expire(310.0)
    assert metric.expired == Counter({"idle": 4, "pod_gone": 0})
    found = count(metric, flows, {"destination_port": 1}, now=320.0)
    assert found == {"protocol=TCP,port=1000": 2, "protocol=TCP,port=other": 1, "protocol=TCP,port=1": 1}


def test_idle_series_go_and_come_back_from_nothing() -> None:
    flows = store()
    metric = family(flows, "drop:sourceContext=pod", expiry=600.0)
    count(metric, flows, DROPPED, now=0.0)
    count(metric, flows, {**DROPPED, "protocol": 17}, now=500.0)
    metric.expire(700.0)
    assert told(metric) == {"reason=POLICY_DENIED,protocol=UDP,source=demo/client-5f": 1}
    found = count(metric, flows, DROPPED, now=700.0)
    assert found["reason=POLICY_DENIED,protocol=TCP,source=demo/client-5f"] == 1


def test_without_an_expiry_series_stay() -> None:
    flows = store()
    metric = family(flows, "drop", expiry=0.0)
    count(metric, flows, DROPPED)
    metric.expire(1e9)
    assert metric.size == 1


@pytest.mark.parametrize("text", ["sourceContext=pod", "sourceContext=ip", "labelsContext=source_pod"])
def test_series_of_a_gone_pod_go(text: str) -> None:
    flows = store()
    metric = family(flows, f"drop:{text}")
    count(
        metric, flows, DROPPED, {**DROPPED, "source": SERVER, "source_endpoint": 102, "source_identity": 1234}
    )
    assert metric.pods() == {("demo", "client-5f"), ("demo", "server-0")}
    metric.expire(1.0, {("demo", "client-5f")})
    assert metric.size == 1
    assert metric.pods() == {("demo", "server-0")}


def test_a_pod_that_talks_to_itself_goes_once() -> None:
    flows = store()
    metric = family(flows, "drop:sourceContext=pod;destinationContext=pod")
    count(
        metric,
        flows,
        {**DROPPED, "destination": CLIENT, "destination_endpoint": 101, "destination_identity": 4321},
    )
    metric.expire(1.0, {("demo", "client-5f")})
    assert metric.size == 0
    assert not metric.pods()
    assert metric.expired == Counter({"pod_gone": 1, "idle": 0})


def test_series_by_workload_outlive_their_pods() -> None:
    flows = store()
    metric = family(flows, "drop:sourceContext=workload")
    count(metric, flows, DROPPED)
    metric.expire(1.0, {("demo", "client-5f")})
    assert metric.size == 1


# -- all together -------------------------------------------------------------------------------------------


ALL = (
    "flow:sourceContext=pod drop tcp:destinationContext=namespace icmp port-distribution policy "
    "flows-to-world dns httpV2 kafka"
)


def random_rows(random: np.random.Generator, number: int) -> list[dict[str, Any]]:
    sides = [(CLIENT, 4321, 101), (SERVER, 1234, 102), (OTHER, 5000, 0), ("192.0.2.80", 2, 0)]
    rows = []
    for _ in range(number):
        source, destination = random.choice(4), random.choice(4)
        kind = int(random.choice([1, 2, 2, 3]))
        rows.append(
            {
                "source": sides[source][0],
                "source_identity": sides[source][1],
                "source_endpoint": sides[source][2],
                "destination": sides[destination][0],
                "destination_identity": sides[destination][1],
                "destination_endpoint": sides[destination][2],
                "kind": kind,
                "verdict": {1: 2, 2: 1, 3: 4}[kind],
                "reason": 133 if kind == 1 else 0,
                "protocol": int(random.choice([6, 17, 1])),
                "tcp_flags": int(random.choice([2, 18, 16, 17])),
                "destination_port": int(random.choice([53, 80, 443])),
                "direction": int(random.choice([1, 2])),
            }
        )
    return rows


def test_counts_do_not_depend_on_batches() -> None:
    rows = random_rows(np.random.default_rng(3), 300)
    whole, parts = store(), store()
    one, many = (
        family(whole, "flow:sourceContext=pod;destinationContext=pod|dns"),
        family(parts, "flow:sourceContext=pod;destinationContext=pod|dns"),
    )
    count(one, whole, *rows)
    for start in range(0, 300, 7):
        count(many, parts, *rows[start : start + 7])
    assert told(one) == told(many)
    assert sum(told(one).values()) == 300


@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_is_counted_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    flows = store()
    text = "flow:sourceContext=pod|ip;destinationContext=pod|dns;labelsContext=traffic_direction"
    small, plain = family(flows, text, series=int(random.integers(1, 20))), family(flows, "flow")
    made = 0
    for step in range(12):
        rows = random_rows(random, int(random.integers(1, 60)))
        made += len(rows)
        first = flows.head
        flows.append([events(*rows)], offset=WALL)
        for span in flows.spans(first, flows.head):
            small.take(Batch(span), float(step))
            plain.take(Batch(span), float(step))
        if random.integers(3) == 0:
            # What goes here has not been idle, so nothing does; but all keys are looked up anew.
            small._series.forget()
    assert sum(told(small).values()) == sum(told(plain).values()) == made
    by_kind: Counter[tuple[str, ...]] = Counter()
    for labels, number in small.samples():
        by_kind[labels[:4]] += number
    assert by_kind == Counter(dict(plain.samples()))


def metrics(flows: FlowStore, clock: ManualClock, text: str = ALL, **choices: Any) -> FlowMetrics:
    made = FlowMetrics(flows, NODE, clock, **choices)
    made.configure(parse(text))
    return made


def scraped(made: FlowMetrics) -> str:
    return b"".join(made.text()).decode()


def test_a_reader_that_is_late_counts_what_it_missed() -> None:
    flows = store(capacity=16)
    made = metrics(flows, ManualClock(), "flow")

    async def late() -> None:
        with Cursor(flows) as cursor:
            for _ in range(5):
                flows.append([events(*[{}] * 10)], offset=WALL)
            await made.catch_up(cursor)

    asyncio.run(late())
    (metric,) = made.families
    assert sum(told(metric).values()) == 16
    assert made.missed == 34
    assert "hubble_metrics_missed_flows_total 34\n" in scraped(made)


def test_flows_are_counted_as_they_come() -> None:
    flows = store(capacity=16_384)
    made = metrics(flows, ManualClock(), "flow")

    async def follow() -> None:
        task = asyncio.ensure_future(made.run())
        await asyncio.sleep(0)
        flows.append([events(*[{}] * 3)], offset=WALL)
        # More than are let gather.
        flows.append([events(*[{}] * 9000)], offset=WALL)
        async with asyncio.timeout(60):
            while "} 9003\n" not in scraped(made):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(follow())
    assert flows.listeners == set()


def test_pods_nobody_knows_lose_their_series_after_a_while() -> None:
    flows, clock = store(), ManualClock()
    pods = {("demo", "client-5f"), ("demo", "server-0")}
    made = metrics(flows, clock, "drop:sourceContext=pod", pods=lambda: pods)
    (metric,) = made.families
    count(metric, flows, DROPPED, now=clock.monotonic())
    asyncio.run(made.housekeep())
    pods.clear()
    asyncio.run(made.housekeep())
    clock.advance(30.0)
    pods.add(("demo", "client-5f"))
    asyncio.run(made.housekeep())
    pods.clear()
    asyncio.run(made.housekeep())
    clock.advance(59.0)
    asyncio.run(made.housekeep())
    assert metric.size == 1, "it was there in between"
    clock.advance(1.0)
    asyncio.run(made.housekeep())
    assert metric.size == 0
    assert 'hubble_metrics_series_expired_total{metric="drop",reason="pod_gone"} 1\n' in scraped(made)


def test_what_did_not_change_keeps_its_counts() -> None:
    flows, clock = store(), ManualClock()
    made = metrics(flows, clock, "flow drop:sourceContext=pod")
    flow_metric, drop_metric = made.families
    count(flow_metric, flows, {})
    count(drop_metric, flows, DROPPED)
    made.configure(parse_yaml(b"""
metrics:
- {name: flow, excludeFilters: [{destination_port: ["53"]}]}
- {name: drop, contextOptions: [{name: sourceContext, values: [namespace]}]}
"""))  # fmt: skip
    again, other = made.families
    assert again is flow_metric
    assert other is not drop_metric
    found = count(again, flows, {}, {"destination_port": 53})
    assert found == {"protocol=TCP,type=Trace,subtype=to-endpoint,verdict=FORWARDED": 2}


def test_a_filter_that_can_not_be_used_changes_nothing() -> None:
    made = metrics(store(), ManualClock(), "flow")
    before = made.families
    wrong = b"metrics: [{name: drop, includeFilters: [{source_ip: [nowhere]}]}]"
    with pytest.raises(MetricsError, match="nowhere"):
        made.configure(parse_yaml(wrong))
    assert made.families == before


def test_a_forecast_counts_series_without_a_budget() -> None:
    flows = store()
    flows.append([events(*many_ports(300), {"protocol": 17})], offset=WALL)
    (told_of,) = asyncio.run(forecast(flows, parse("port-distribution:sourceContext=pod")))
    assert (told_of.series, told_of.flows) == (301, 301)
    assert told_of.by_label[:2] == (("port", 301), ("protocol", 2))
    assert 0.29 < told_of.seconds < 0.31
    (nothing,) = asyncio.run(forecast(store(), parse("drop")))
    assert (nothing.series, nothing.by_label) == (0, ())
