"""Write the custom resource definitions of Cilia's own kinds to deploy/crds, generated from the typed models.

Run `python tools/crdgen.py` after changing a model; a test compares the files with the models.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from cilia.model.resources import crd

TARGET = Path(__file__).resolve().parent.parent / "deploy" / "crds"


class _Dumper(yaml.CSafeDumper):
    """YAML without anchors: a reader of a definition should not have to look elsewhere in it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def rendered() -> dict[str, str]:
    """Return file name to text, one file a definition."""
    return {
        f"{definition.plural}.yaml": yaml.dump(
            crd.custom_resource_definition(definition), Dumper=_Dumper, sort_keys=False, width=110
        )
        for definition in crd.DEFINITIONS
    }


def main() -> int:
    """Write the files that differ and remove the ones that no longer belong."""
    files = rendered()
    TARGET.mkdir(parents=True, exist_ok=True)
    for stale in TARGET.glob("*.yaml"):
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
