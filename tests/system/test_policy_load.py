"""Policies change while pods talk: no packet meets a verdict that neither the old nor the new ones give."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.policy_lab import PolicyLab, pod, policy_lab
from tests.support.policy_load import APPS, NAMESPACE, Changes, Revision, Traffic, judge
from tests.support.policy_truth import Peer, Truth

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

PODS = 20
CHANGES = 50
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


def test_no_packet_sees_a_verdict_of_neither(lab: PolicyLab) -> None:
    records = [lab.record(Peer(NAMESPACE, f"pod-{number}")) for number in range(PODS)]
    peers = [
        Peer(NAMESPACE, one.name, {"app": APPS[number % 10]}, one.ips) for number, one in enumerate(records)
    ]
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
