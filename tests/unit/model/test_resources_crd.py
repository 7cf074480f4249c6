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
OTHER_PATTERN = {"port", "matchName", "matchPattern", "type"}


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
@pytest.mark.parametrize("definition", crd.DEFINITIONS, ids=lambda definition: definition.kind)
def test_names_and_bounds_are_the_well_known_ones(definition: Definition) -> None:
    facts = yaml.safe_load((Path(str(FACTS)) / "crds" / f"{definition.plural}.yaml").read_text())
    ours = crd.custom_resource_definition(definition)["spec"]
    assert facts["group"] == ours["group"]
    assert facts["names"] == ours["names"]
    assert facts["scope"] == ours["scope"]
    version = facts["versions"][0]
    (generated,) = ours["versions"]
    assert version["name"] == generated["name"]
    assert version["subresources"] == list(generated["subresources"])
    columns = [
        {key: column[key] for key in ("name", "type", "jsonPath")} for column in ours_columns(generated)
    ]
    assert columns[: len(version["columns"])] == version["columns"] or not version["columns"]
    assert comparable(generated["schema"]["openAPIV3Schema"]) == comparable(version["schema"])


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
                {child: comparable(part, child) for child, part in value.items()}
                if key == "properties"
                else comparable(value, name)
            )
        elif key in ("enum", "required"):
            kept[key] = sorted(value)
        elif key == "description" or (key == "pattern" and name in OTHER_PATTERN):
            continue
        else:
            kept[key] = value
    return kept
