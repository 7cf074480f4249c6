"""`cilia config` and `cilia endpoint config`: what is asked of the agent, and what is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from cilia.api.types import Component, Health, OptionChange, Setting, StatusResponse
from cilia.cli import main
from cilia.cli.config import read_changes
from cilia.cli.options import UserError
from cilia.cli.status import lines

LIVE = Setting(name="enforcement", value="always", source="live", option="PolicyEnforcement")
AUDIT = Setting(name="policy-audit-mode", value=False, option="PolicyAuditMode")
FIXED = Setting(name="tunnel", value=True, source="flag")


class FakeClient:
    """Answers with three settings and notes the changes."""

    def __init__(self, path: object = None, timeout: float = 0.0) -> None:
        self.changes = changes

    def settings(self) -> list[Setting]:
        return [LIVE, AUDIT, FIXED]

    def change_settings(self, change: OptionChange) -> list[Setting]:
        self.changes.append(("node", change))
        return self.settings()

    def endpoint_settings(self, reference: str) -> list[Setting]:
        return [AUDIT]

    def change_endpoint(self, reference: str, change: OptionChange) -> list[Setting]:
        self.changes.append((reference, change))
        return [AUDIT]


changes: list[tuple[str, OptionChange]] = []


@pytest.fixture
def cilia(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    monkeypatch.setattr("cilia.cli.options.AgentClient", FakeClient)
    changes.clear()

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cilia", *line.split()])
        code = main.run(main.build())
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


Cilia = Callable[[str], tuple[int, str, str]]


def test_settings_are_shown_with_where_they_come_from_and_what_changes_them(cilia: Cilia) -> None:
    code, out, _ = cilia("config")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["enforcement", "always", "live", "PolicyEnforcement"] in rows
    assert ["tunnel", "true", "flag", "-"] in rows
    assert changes == []


def test_a_change_is_sent_whole_and_what_may_change_is_shown(cilia: Cilia) -> None:
    code, out, _ = cilia("config PolicyEnforcement=always PolicyAuditMode=Enabled")
    wanted = OptionChange(options={"PolicyEnforcement": "always", "PolicyAuditMode": "Enabled"})
    assert (code, changes) == (0, [("node", wanted)])
    assert "tunnel" not in out
    assert "tunnel" in cilia("config PolicyEnforcement=always --all")[1]


def test_a_reset_is_of_what_is_named_or_of_all_that_was_changed(cilia: Cilia) -> None:
    cilia("config --reset PolicyAuditMode")
    cilia("config --reset")
    assert changes == [
        ("node", OptionChange(reset=("PolicyAuditMode",))),
        ("node", OptionChange(reset=("PolicyEnforcement",))),
    ]


def test_an_endpoint_is_changed_by_the_name_of_its_pod(cilia: Cilia) -> None:
    code, out, _ = cilia("endpoint config demo/web PolicyAuditMode=Enabled")
    assert code == 0
    assert changes == [("pod-name:demo/web", OptionChange(options={"PolicyAuditMode": "Enabled"}))]
    assert cilia("endpoint config 7 --reset")[0] == 0
    assert len(changes) == 1
    assert "policy-audit-mode" in out


def test_json_is_json(cilia: Cilia) -> None:
    assert json.loads(cilia("config -o json")[1])[2]["value"] is True
    assert json.loads(cilia("endpoint config 7 -o json")[1])[0]["option"] == "PolicyAuditMode"


@pytest.mark.parametrize(
    ("words", "reset", "sentence"),
    [
        (["PolicyAuditMode"], False, "not OPTION=VALUE"),
        (["=always"], False, "not OPTION=VALUE"),
        (["PolicyAuditMode="], False, "not OPTION=VALUE"),
        (["A=1", "A=2"], False, "named twice"),
        (["PolicyAuditMode=Enabled"], True, "name the option alone"),
    ],
)
def test_what_makes_no_sense_is_not_sent(words: list[str], reset: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_changes(words, reset)


def test_the_status_warns_of_what_is_not_enforced() -> None:
    answer = StatusResponse(
        agent=Component(state=Health.OK),
        policy=Component(state=Health.WARNING, msg="audit mode: what policies deny passes and is noted"),
    )
    shown = dict(lines(answer))["Policy"]
    assert shown.plain.startswith("Warning")
    assert "audit mode" in shown.plain
    assert shown.spans[0].style == "yellow"
    usual = dict(lines(StatusResponse(agent=Component(state=Health.OK))))["Policy"]
    assert usual == "revision 0, 0 policies"
