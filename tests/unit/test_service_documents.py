"""What docs/services.md says of flags, annotations and reasons is so; its examples are well made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main
import yaml

from cilia.apps.agent.main import app
from cilia.apps.agent.standalone import ServicesFile, row
from cilia.control.services import written
from cilia.control.services.node import ServicesNode
from cilia.model.service import Algorithm, ForwardingMode, FrontendKind
from cilia.schema import Desired, Inputs
from cilia.sources import redirects
from cilia.sources.services import endpoint_slice, service

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "services.md").read_text()
EXAMPLES = REPOSITORY / "examples" / "services"
SETTINGS = re.compile(r"^\| `--([\w-]+)` \| ([^|]*) \|", re.MULTILINE)
ON_OFF = {"on": True, "off": False, "none": "", "disabled": "disabled"}

FOUND_OUT = ("cgroup-root", "services-file", "bpf-lb-maglev-hash-seed", "nodeport-addresses")
"""Flags whose default is told in words."""


def flags() -> dict[str, Any]:
    """The agent's flags and their defaults."""
    command = typer.main.get_command(app)
    return {name: option.default for option in command.params for name in option.opts}


@pytest.mark.parametrize(("flag", "told"), SETTINGS.findall(PAGE))
def test_settings_are_flags_with_these_defaults(flag: str, told: str) -> None:
    default = flags()[f"--{flag}"]
    words = told.replace("`", "").split(" (")[0].strip()
    if flag in FOUND_OUT:
        assert not default
    elif words in ON_OFF:
        assert default == ON_OFF[words]
    else:
        assert str(default).removesuffix(".0") == words.split(":")[0] or str(default) == words


def test_every_flag_it_names_is_one() -> None:
    known = flags()
    named = set(re.findall(r"`--([a-z][\w-]+[a-z])", PAGE))
    beside = {"repair", "to-service"}
    wrong = {flag for flag in named - beside if f"--{flag}" not in known and f"--{flag[3:]}" not in known}
    assert not wrong


def test_annotations_are_those_that_are_read() -> None:
    table = PAGE[PAGE.index("## What you can write on a Service") : PAGE.index("## Settings")]
    told = set(re.findall(r"`(service\.(?:cilium|kubernetes)\.io/[\w-]+)`", table))
    read = {value for value in vars(written).values() if str(value).startswith("service.")}
    assert told == read


def entries(*documents: dict[str, Any]) -> Desired:
    """What a node makes of Services and their slices."""
    inputs, desired = Inputs(), Desired()
    for document in documents:
        raw = msgspec.Raw(msgspec.json.encode(document))
        if document["kind"] == "Service":
            found = service(raw)
            assert found is not None
            inputs.services.put(found)
        else:
            endpoints = endpoint_slice(raw)
            assert endpoints is not None
            inputs.endpoint_slices.put(endpoints)
    ServicesNode(inputs, desired, node="node-1").step()
    return desired


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[1-9]*.yaml")), ids=lambda path: path.name)
def test_services_of_the_examples_are_without_problems(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    document["spec"].setdefault("clusterIPs", ["10.96.0.99", "fd00:10:96::99"])
    desired = entries(document)
    assert [state for state in desired.service_states if state.problems] == []
    found = list(desired.service_entries)
    assert {":" in entry.frontend.address for entry in found} == {True, False}
    assert FrontendKind.CLUSTER_IP in {entry.kind for entry in found}


def test_the_annotated_example_is_as_it_says() -> None:
    document = yaml.safe_load((EXAMPLES / "4-annotated.yaml").read_text())
    document["spec"]["clusterIPs"] = ["10.96.0.99", "fd00:10:96::99"]
    for entry in entries(document).service_entries:
        assert (entry.algorithm, entry.mode) == (Algorithm.MAGLEV, ForwardingMode.DSR)
        assert entry.affinity == 60


def test_the_redirect_of_the_examples_is_one() -> None:
    document = yaml.safe_load((EXAMPLES / "redirect" / "web.yaml").read_text())
    found = redirects.row(msgspec.Raw(msgspec.json.encode(document)))
    assert (found.service, found.problem) == ("web", "")


def test_the_file_of_services_by_hand_is_one() -> None:
    text = (REPOSITORY / "examples" / "standalone" / "services.yaml").read_text()
    specs = msgspec.convert(yaml.safe_load(text), ServicesFile).services
    assert [str(row(spec).frontend) for spec in specs] == ["192.0.2.10:80/TCP", "[2001:db8::10]:80/TCP"]


def test_reasons_have_these_numbers() -> None:
    header = (REPOSITORY / "bpf" / "abi" / "drop.h").read_text()
    table = PAGE[PAGE.index("| Drop reason") :].split("\n\n")[0]
    numbers = [int(number) for number in re.findall(r"^\| (\d+)", table, re.MULTILINE)]
    assert len(numbers) >= 5
    for number in numbers:
        assert f"X({number}," in header
