"""The definitions come from the models, stand in the repository as generated, and match what users know."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cilia.model.resources import crd
from cilia.model.resources.crd import Definition
from tools import crdgen

FACTS = os.environ.get("CILIA_WIRE_FACTS")

# Stricter or equivalent on purpose: anchored as a whole, and free of exponential backtracking.
OTHER_PATTERN = {"port", "matchName", "matchPattern", "type", "ip", "name"}

WELL_KNOWN = [definition for definition in crd.DEFINITIONS if definition.group == crd.OWN_GROUP]

ADDITIONS = {
    "audit",
    "log",
    "cidrGroupSelector",
    "nodes",
    "VRRP",
    "IGMP",
}
"""Fields and values of ours, and of newer versions of the language, that the well-known schema lacks."""

OPTIONAL_HERE = {"port"}
"""Fields that the well-known schema wants given."""


def test_the_committed_files_are_the_generated_ones() -> None:
    committed = {path.name: path.read_text() for path in crdgen.TARGET.glob("*.yaml")}
    assert committed == crdgen.rendered(), "run: python tools/crdgen.py"


def test_a_schema_is_structural() -> None:
    def check(schema: dict[str, Any], path: str) -> None:
        assert "$ref" not in schema, path
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        for name, part in schema.get("properties", {}).items():
            check(part, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            if key in schema:
                check(schema[key], f"{path}.{key}")

    for definition in crd.DEFINITIONS:
        check(crd.object_schema(definition.model), definition.kind)


@pytest.mark.skipif(FACTS is None, reason="CILIA_WIRE_FACTS does not name a directory with crds/*.yaml")
@pytest.mark.parametrize("definition", WELL_KNOWN, ids=lambda definition: definition.kind)
def test_names_and_bounds_are_the_well_known_ones(definition: Definition) -> None:
    facts = yaml.safe_load((Path(str(FACTS)) / "crds" / f"{definition.plural}.yaml").read_text())
    ours = crd.custom_resource_definition(definition)["spec"]
    assert facts["group"] == ours["group"]
    assert facts["names"] == ours["names"]
    assert facts["scope"] == ours["scope"]
    version = facts["versions"][0]
    generated = ours["versions"][0]
    assert version["name"] == generated["name"]
    assert version["subresources"] == list(generated["subresources"])
    columns = [
        {key: column[key] for key in ("name", "type", "jsonPath")} for column in ours_columns(generated)
    ]
    assert columns[: len(version["columns"])] == version["columns"] or not version["columns"]
    assert comparable(generated["schema"]["openAPIV3Schema"]) == comparable(version["schema"])


def test_a_kind_of_another_project_bears_what_the_api_server_asks_for() -> None:
    (other,) = (definition for definition in crd.DEFINITIONS if definition.group != crd.OWN_GROUP)
    written = crd.custom_resource_definition(other)
    assert written["metadata"]["annotations"]["api-approved.kubernetes.io"].startswith("https://")
    assert "cnp" not in written["spec"]["names"]["shortNames"]
    spec = written["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert spec["required"] == ["tier", "priority", "subject"]
    subject = spec["properties"]["subject"]
    assert (subject["minProperties"], subject["maxProperties"]) == (1, 1)
    peers = spec["properties"]["egress"]["items"]["properties"]["to"]
    assert (peers["minItems"], peers["maxItems"], peers["items"]["maxProperties"]) == (1, 25, 1)


def test_a_group_is_served_in_both_versions_with_one_schema() -> None:
    (group,) = (definition for definition in crd.DEFINITIONS if definition.kind == "CiliumCIDRGroup")
    first, second = crd.custom_resource_definition(group)["spec"]["versions"]
    assert (first["name"], first["storage"], second["name"], second["storage"]) == (
        "v2alpha1",
        True,
        "v2",
        False,
    )
    assert first["schema"] == second["schema"]


def ours_columns(version: dict[str, Any]) -> list[dict[str, Any]]:
    columns: list[dict[str, Any]] = version["additionalPrinterColumns"]
    return columns


def comparable(schema: Any, name: str = "") -> Any:
    """Drop the prose, and the order of lists whose order means nothing."""
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key in ("properties", "additionalProperties", "items"):
            kept[key] = (
                {child: comparable(part, child) for child, part in value.items() if child not in ADDITIONS}
                if key == "properties"
                else comparable(value, name)
            )
        elif key == "oneOf":
            kept[key] = [one for one in value if not ADDITIONS & set(one["required"])]
        elif key in ("enum", "required"):
            kept[key] = sorted(set(value) - (ADDITIONS if key == "enum" else OPTIONAL_HERE))
            if not kept[key]:
                del kept[key]
        elif key == "description" or (key == "pattern" and name in OTHER_PATTERN):
            continue
        else:
            kept[key] = value
    return kept
