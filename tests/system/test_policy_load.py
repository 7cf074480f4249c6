"""Policies change while pods talk: no packet meets a verdict that neither the old nor the new ones give."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from cilia.lab.records import PodRecord
from tests.support.policy_lab import PolicyLab, pod, policy_lab
from tests.support.policy_load import APPS, NAMESPACE, Changes, Revision, Traffic, judge
from tests.support.policy_truth import Document, Peer, Truth

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

PODS = 20
CHANGES = 50
RELABELLED = 30
RATE = 3000
"""Packets a second."""


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    with policy_lab(f"tpl{os.getpid() % 1000000}") as made:
        peers = [Peer(NAMESPACE, f"pod-{number}", {"app": APPS[number % 10]}) for number in range(PODS)]
        made.start_pods(
            [pod(peer, f"node-{number // 10 % 2 + 1}", [("TCP", 8080)]) for number, peer in enumerate(peers)]
        )
        yield made


@pytest.fixture(scope="module")
def records(lab: PolicyLab) -> list[PodRecord]:
    return [lab.record(Peer(NAMESPACE, f"pod-{number}")) for number in range(PODS)]


@pytest.fixture(scope="module")
def peers(records: list[PodRecord]) -> list[Peer]:
    return [
        Peer(NAMESPACE, one.name, {"app": APPS[number % 10]}, one.ips) for number, one in enumerate(records)
    ]


def test_no_packet_sees_a_verdict_of_neither(
    lab: PolicyLab, peers: list[Peer], records: list[PodRecord]
) -> None:
    revisions = [Revision()]
    changes = Changes(seed=1)
    with Traffic(peers, [one.netns for one in records], RATE, seed=2) as traffic:
        time.sleep(0.5)
        for _ in range(CHANGES):
            verb, document, policies = changes.next()
            written = time.monotonic()
            (lab.apply if verb == "apply" else lab.delete)(document)
            lab.settle()
            revisions.append(Revision(policies=policies, written=written, enforced=time.monotonic()))
            time.sleep(0.02)
    report = judge(traffic, revisions, Truth({NAMESPACE: {}}))
    assert report.passed == []
    assert report.lost == []
    assert report.crossing > CHANGES
    assert report.arrived < report.packets


def test_a_relabelled_pod_is_judged_by_old_or_new_labels(
    lab: PolicyLab, peers: list[Peer], records: list[PodRecord]
) -> None:
    """One pod after the other is called as another one is, some of them back again."""
    policies: list[Document] = []
    changes = Changes(seed=3)
    while len(policies) < 6:
        policies = list(changes.next()[2])
    lab.replace_all(policies)
    rng, apps = random.Random(4), dict[str, str]()
    revisions = [Revision(policies=tuple(policies))]
    with Traffic(peers, [one.netns for one in records], RATE, seed=5) as traffic:
        time.sleep(0.5)
        for _ in range(RELABELLED):
            peer, app = rng.choice(peers), rng.choice(APPS)
            written = time.monotonic()
            lab.relabel(peer, {"app": app})
            apps = {**apps, peer.name: app}
            enforced = time.monotonic()
            revisions.append(
                Revision(policies=tuple(policies), apps=apps, written=written, enforced=enforced)
            )
            time.sleep(0.05)
    report = judge(traffic, revisions, Truth({NAMESPACE: {}}))
    assert report.passed == []
    assert report.lost == []
    assert report.crossing > RELABELLED
    assert 0 < report.arrived < report.packets
