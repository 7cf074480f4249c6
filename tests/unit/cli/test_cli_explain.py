"""`cilia policy explain`, `check`, `selectors` and `get --unused` against fixed answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from cilia.api.client import AgentError
from cilia.api.types import CheckRequest, PolicyUsage, RuleUsage, RuleView, SelectorView
from cilia.cli import completing, main
from cilia.model.explain import (
    Change,
    CheckReport,
    Difference,
    DocumentProblem,
    End,
    Expansion,
    Explanation,
    Member,
    Remedy,
    RuleStory,
    Side,
    Then,
)

RULE = RuleView(kind="CiliumNetworkPolicy", namespace="demo", name="web", resource_version="7", path="spec")
STORY = RuleStory(
    kind="CiliumNetworkPolicy",
    namespace="demo",
    name="web",
    resource_version="7",
    path="spec.ingress[0]",
    action="allow",
    tier="normal",
    ports="TCP 80",
    why="it is about TCP 80, not TCP 81",
    yaml="toPorts:\n- ports:\n  - port: '80'\n",
    peer=Expansion(selector="app=client", count=12, members=(Member(identity=300, pods=("demo/client-0",)),)),
)
TOLD = Explanation(
    source=End(
        given="demo/client-0",
        identity=300,
        labels=("k8s:app=client", "k8s:io.cilium.k8s.policy.cluster=default"),
        address="10.0.0.5",
        pod="demo/client-0",
        node="worker-2",
        origin="CiliumEndpoint demo/client-0 of node worker-2",
        audit=True,
    ),
    destination=End(given="10.0.0.7", identity=301, address="10.0.0.7", named_ports=("http=80/TCP",)),
    protocol="TCP",
    port="81",
    verdict="deny",
    revision=9,
    sides=(
        Side(
            direction="ingress",
            subject="10.0.0.7",
            verdict="deny",
            default=True,
            reason="Denied by default.",
            deciding=(RuleStory(kind="CiliumNetworkPolicy", name="web", path="spec", action="isolate"),),
            losers=(RuleStory(kind="ClusterNetworkPolicy", name="base", tier="baseline", priority=3),),
            misses=(STORY,),
            misses_left_out=4,
            remedy=Remedy(
                changes=(Change(sentence="Add this rule:", yaml="- toPorts: []\n"),), verified=True
            ),
        ),
    ),
    notes=("Something else.",),
    then=Then(
        uuid="u",
        time="2026-11-23T08:00:00.000Z",
        verdict="denied",
        reason="POLICY_DENIED",
        summary="TCP Flags: SYN",
        ingress=("default deny of CiliumNetworkPolicy demo/web@7 spec",),
        revision=8,
    ),
)
REPORT = CheckReport(
    replaced=("CiliumNetworkPolicy demo/web",),
    flows=(
        Difference(
            source="demo/client-0",
            destination="demo/web-0",
            protocol="TCP",
            port="80",
            before="allow",
            after="deny",
            direction="ingress",
            before_rules=("no rule",),
            after_rules=("default deny",),
            flows=7,
            last_seen="2026-11-23T08:00:00.000Z",
        ),
    ),
    flows_seen=20,
    pairs_judged=400,
    since=300.0,
    notes=("Some was left out.",),
)
OPENED = CheckReport(
    pairs=(
        Difference(
            source="a",
            destination="b",
            protocol="any",
            port="any",
            before="deny",
            after="allow",
            direction="egress",
        ),
    )
)


class FakeClient:
    """Stands in for AgentClient."""

    answers: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, path: object = None, timeout: float = 0.0) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            FakeClient.asked.append((name, *arguments))
            answer = FakeClient.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


@pytest.fixture(autouse=True)
def agent(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    monkeypatch.setattr("cilia.cli.options.AgentClient", FakeClient)
    monkeypatch.setattr("cilia.cli.completing.AgentClient", FakeClient)
    FakeClient.answers = {
        "explain": TOLD,
        "explain_flow": TOLD,
        "check": REPORT,
        "selectors": [
            SelectorView(selector="app=client", users=(RULE,) * 5, identities=(300, 301)),
            SelectorView(selector="10.0.0.0/8"),
        ],
        "policy_usage": PolicyUsage(
            counted_since="2026-11-23T08:00:00.000Z",
            rules=(RuleUsage(rule=RULE), RuleUsage(rule=RULE, hits=3)),
        ),
    }
    FakeClient.asked = []
    return FakeClient


Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def cilia(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cilia", *line.split()])
        code = main.run(main.build())
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_an_explanation_as_a_tree(cilia: Run, agent: type[FakeClient]) -> None:
    code, out, _ = cilia("policy explain --from demo/client-0 --to 10.0.0.7 --port http")
    assert code == 0
    assert agent.asked == [("explain", "demo/client-0", "10.0.0.7", "http")]
    for words in (
        "DENY  demo/client-0 → 10.0.0.7  TCP 81",
        "on node worker-2",
        "in audit",
        "http=80/TCP",
        "When it happened (2026-11-23T08:00:00.000Z): DENIED POLICY_DENIED",
        "default deny of CiliumNetworkPolicy demo/web@7 spec",
        "ingress of 10.0.0.7: DENY",
        "tier baseline",
        "because it is about TCP 80, not TCP 81",
        "and 4 more",
        "To allow it (tried: it would pass this side)",
        "Note: Something else.",
    ):
        assert words in out
    assert "demo/client-0\n" not in out.partition("ingress of")[2]
    verbose = cilia("policy explain -v --from a/b --to c/d")[1]
    assert "app=client: 12 identities" in verbose
    assert "and 11 more" in verbose
    assert "- port: '80'" in verbose


def test_a_flow_is_asked_for_by_its_number(cilia: Run, agent: type[FakeClient]) -> None:
    assert cilia("policy explain 1234-5")[0] == 0
    assert agent.asked == [("explain_flow", "1234-5")]
    assert json.loads(cilia("policy explain 1234-5 -o json")[1])["verdict"] == "deny"


@pytest.mark.parametrize(
    "line", ["policy explain", "policy explain --from a/b", "policy explain 1-2 --from a/b --to c/d"]
)
def test_half_a_question_is_refused(cilia: Run, line: str) -> None:
    code, _, err = cilia(line)
    assert code == 1
    assert err.startswith("cilia: ")


@pytest.mark.parametrize(
    ("report", "flag", "status"),
    [
        (REPORT, "", 1),
        (REPORT, "--fail-on newly-allowed", 0),
        (REPORT, "--fail-on any", 1),
        (REPORT, "--fail-on none", 0),
        (OPENED, "", 0),
        (OPENED, "--fail-on newly-allowed", 1),
        (OPENED, "--fail-on any", 1),
        (CheckReport(), "--fail-on any", 0),
        (CheckReport(problems=(DocumentProblem(document="x", sentence="No."),)), "--fail-on none", 2),
    ],
)
def test_exit_codes_for_ci(
    cilia: Run, agent: type[FakeClient], tmp_path: Path, report: CheckReport, flag: str, status: int
) -> None:
    agent.answers["check"] = report
    file = tmp_path / "policy.yaml"
    file.write_text("kind: X\n")
    assert cilia(f"policy check {flag} {file}")[0] == status
    assert cilia(f"policy check {flag} -o json {file}")[0] == status


def test_files_directories_and_standard_input_are_sent(
    cilia: Run, agent: type[FakeClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.yaml", "a.json", "notes.txt", "deep/c.yml", ".git/d.yaml"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(sys, "stdin", io.StringIO("typed"))
    cilia(f"policy check {tmp_path} - --since 90s --delete NetworkPolicy/demo/old --fail-on none")
    (_, request) = agent.asked[0]
    assert isinstance(request, CheckRequest)
    assert [document.text for document in request.documents] == ["a.json", "b.yaml", "deep/c.yml", "typed"]
    assert (request.since, request.delete) == (90.0, ("NetworkPolicy/demo/old",))


@pytest.mark.parametrize(
    "line",
    ["policy check", "policy check /nonexistent", "policy check x --since soon", "policy check x --since 9d"],
)
def test_what_cannot_be_checked_is_status_2(cilia: Run, line: str) -> None:
    code, _, err = cilia(line)
    assert code == 2
    assert err.startswith("cilia: ")


def test_an_agent_that_refuses_is_status_2(cilia: Run, agent: type[FakeClient], tmp_path: Path) -> None:
    agent.answers["check"] = AgentError("Another check is running; try again when it is done.", 429)
    (tmp_path / "a.yaml").write_text("")
    assert cilia(f"policy check {tmp_path}")[0] == 2


def test_a_report_for_people(cilia: Run, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("")
    out = cilia(f"policy check {tmp_path}")[1]
    for words in (
        "would replace CiliumNetworkPolicy demo/web",
        "allow → deny  by ingress",
        "· demo/client-0 → demo/web-0  TCP 80  7 seen",
        "then default deny",
        "Newly denied: 1, newly allowed: 0",
        "Note: Some was left out.",
    ):
        assert words in out


def test_selectors_are_counted_or_listed(cilia: Run) -> None:
    out = cilia("policy selectors")[1]
    assert "2 more" in out
    assert "300,301" in cilia("policy selectors -v")[1]
    assert len(json.loads(cilia("policy selectors -o json")[1])) == 2


def test_unused_rules_with_since_when(cilia: Run) -> None:
    out = cilia("policy get --unused")[1]
    assert "1 of 2 rules in force here were not used since 2026-11-23T08:00:00.000Z." in out
    assert len(json.loads(cilia("policy get --unused -o json")[1])["rules"]) == 1


def test_completion_offers_what_there_is(agent: type[FakeClient]) -> None:
    agent.answers["policies"] = AgentError("There is no agent.")
    assert completing.complete_policies("Net") == []


def test_what_the_same_rules_decide_is_told_together(cilia: Run, agent: type[FakeClient]) -> None:
    flow = REPORT.flows[0]
    many = tuple(msgspec.structs.replace(flow, source=f"demo/client-{number}") for number in range(9))
    agent.answers["check"] = msgspec.structs.replace(REPORT, flows=many)
    out = cilia("policy check --delete NetworkPolicy/demo/web")[1]
    assert out.count("default deny") == 1
    assert out.count("→ demo/web-0  TCP 80  7 seen") == 6
    assert "and 3 more: -v lists all" in out
    out = cilia("policy check -v --delete NetworkPolicy/demo/web")[1]
    assert out.count("→ demo/web-0  TCP 80  7 seen") == 9
