"""Labels of pods: what is theirs to choose, and what is not."""

from __future__ import annotations

import pytest

from cilia.model.labels import CLUSTER, NAMESPACE, NAMESPACE_LABELS, SERVICE_ACCOUNT, Labels


@pytest.mark.parametrize("key", [NAMESPACE, SERVICE_ACCOUNT, CLUSTER, f"{NAMESPACE_LABELS}team"])
def test_a_pod_cannot_choose_where_it_stands(key: str) -> None:
    honest = Labels.kubernetes("red", {"app": "web"}, {"team": "a"})
    assert Labels.kubernetes("red", {"app": "web", key: "kube-system"}, {"team": "a"}) == honest


def test_the_labels_of_a_pod_survive_a_round_through_its_identity() -> None:
    labels = Labels.kubernetes("red", {"app": "web", NAMESPACE: "blue"}, {"team": "a"}, "job", "east")
    assert Labels.from_security_labels(labels.security_labels()) == labels
    assert labels.namespace == "red"
