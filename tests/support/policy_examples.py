"""The YAML of docs/policy-language.md, document by document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policy-language.md"


def examples() -> list[dict[str, Any]]:
    """Every example, in the order of the page."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [yaml.safe_load(block) for block in blocks]
