"""Names, labels and words that others wrote can't make a terminal obey."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import msgspec
import pytest

from cilia.cli import flows, main
from cilia.cli.explain import print_explanation
from cilia.cli.output import Format, print_data, print_table, printable, printable_lines
from cilia.model.explain import End, Explanation, RuleStory, Side

EVIL = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee\rf\ng\x1b[8mh\x00"
COLOURS = re.compile(r"\x1b\[(?:[012](?:;(?:0|3[1-6]))?|3[1-6])m")
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def harmless(text: str) -> bool:
    """Whether a terminal obeys nothing of it but colours."""
    return not OBEYED.search(COLOURS.sub("", text))


def test_what_a_terminal_obeys_is_spelt_out() -> None:
    assert printable(EVIL) == ("a\\x1b[2Jb\\x1b]0;title\\x07c\\x9b31md\\u202ee\\rf\\ng\\x1b[8mh\\x00")
    assert printable("demo/wéb 名前") == "demo/wéb 名前"
    for colour in (*flows.VERDICT_COLOURS.values(), "0", flows.CYAN, flows.MAGENTA):
        for painted in (colour, f"{flows.BOLD};{colour}"):
            line = f"\x1b[{painted}mcoloured\x1b[0m\nnext"
            assert printable_lines(line) == line
    assert harmless(printable_lines(EVIL))


def test_tables_keep_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "LABELS"), [(EVIL, (EVIL, "b"))])
    told = capsys.readouterr().out
    assert harmless(told) and len(told.splitlines()) == 2


def test_json_says_the_same_and_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    print_data({EVIL: [EVIL]}, Format.JSON)
    told = capsys.readouterr().out
    assert harmless(told)
    assert json.loads(told) == {EVIL: [EVIL]}


def test_explanations_quote_policies_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    end = End(given=EVIL, identity=300, labels=(EVIL,), pod=EVIL, node=EVIL, origin=EVIL)
    story = RuleStory(
        kind=EVIL,
        namespace=EVIL,
        name=EVIL,
        resource_version=EVIL,
        path=EVIL,
        action="deny",
        tier="normal",
        ports=EVIL,
        why=EVIL,
        yaml=EVIL,
    )
    side = Side(
        direction="egress",
        subject=EVIL,
        verdict="deny",
        reason=EVIL,
        deciding=(story,),
        losers=(story,),
        misses=(story,),
    )
    told = Explanation(
        source=end,
        destination=end,
        protocol="TCP",
        port="80",
        verdict="deny",
        revision=3,
        sides=(side,),
        notes=(EVIL,),
    )
    print_explanation(told, verbose=True)
    assert harmless(capsys.readouterr().out)


@pytest.mark.parametrize("form", ["compact", "dict", "table", "json"])
def test_flows_of_a_lying_node_are_harmless(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    side = {"identity": 300, "namespace": EVIL, "pod_name": EVIL, "labels": [EVIL]}
    rule = {"kind": EVIL, "name": EVIL, "labels": [f"cilia:rule={EVIL}"]}
    flow = {
        "time": "2026-01-02T03:04:05Z",
        "verdict": "DROPPED",
        "node_name": EVIL,
        "Summary": EVIL,
        "source": side,
        "destination": side,
        "egress_denied_by": [rule],
    }
    file = tmp_path / "flows.json"
    file.write_bytes(msgspec.json.encode({"flow": flow}) + b"\n")
    words = [
        "cilia",
        "observe",
        "--input-file",
        str(file),
        "-o",
        form,
        "--print-node-name",
        "--color",
        "always",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert main.run(main.build()) == 0
    told = capsys.readouterr()
    assert "2026" in told.out or "Jan" in told.out
    assert harmless(told.out) and harmless(told.err)
