"""Which rules are in force for somebody here."""

from __future__ import annotations

import pytest
import yaml

from cilia.apps.agent.usage import rules_here
from cilia.control.policy.dialects.parse import parse
from cilia.control.policy.rules import Section
from cilia.model.labels import Labels
from tests.support.policy_reading import decoded

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: demo}}
specs:
- endpointSelector: {{matchLabels: {{app: {app}}}}}
  ingress: [{{fromEntities: [all]}}, {{fromEntities: [world]}}]
- endpointSelector: {{matchLabels: {{app: nobody}}}}
  egress: [{{}}]
"""
WEB, DB = (Labels.kubernetes("demo", {"app": app}) for app in ("web", "db"))


def read(name: str, app: str) -> tuple[Section, ...]:
    return parse(decoded(yaml.safe_load(POLICY.format(name=name, app=app)))).sections


def test_only_rules_of_specs_that_select_somebody_here() -> None:
    everything = (*read("web", "web"), *read("far", "far"))
    found = rules_here(everything, {("CiliumNetworkPolicy", "demo", "web")}, [DB, WEB])
    assert {(ref.name, ref.path) for ref in found} == {
        ("web", "specs[0].ingress[0].fromEntities[0]"),
        ("web", "specs[0].ingress[1].fromEntities[0]"),
    }
    assert rules_here(everything, set(), [DB, WEB]) == []


def test_policies_that_select_nobody_here_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be ten thousand of them, and each look at labels takes a while."""

    def looked(*_: object) -> bool:
        raise AssertionError("compared labels")

    everything = [section for number in range(10) for section in read(f"far-{number}", "far")]
    monkeypatch.setattr(Section, "selects", looked)
    assert rules_here(everything, {("CiliumNetworkPolicy", "demo", "web")}, [DB, WEB]) == []
