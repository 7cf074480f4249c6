"""Documents that people write, such as YAML: how much they are once every alias is written out."""

from __future__ import annotations

from typing import Any

MOST_VALUES = 100_000
"""Values in a document of settings: far more than anybody writes, few enough to walk in some milliseconds."""
SHOWN = 60


def is_larger(document: object, most: int = MOST_VALUES) -> bool:
    """Whether a document has more than `most` values, each counted as often as it is referred to.

    Aliases of YAML make a short text stand for a billion values, or for one that holds itself.
    """
    waiting = [document]
    seen = 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if isinstance(value, dict):
            waiting += value
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        if seen + len(waiting) > most:
            return True
    return False


def cut(text: str, longest: int = SHOWN) -> str:
    """A text for a sentence: its beginning, if it is long."""
    return text if len(text) <= longest else text[:longest] + "..."


def yaml_loader() -> Any:
    """What reads YAML: PyYAML's quick loader, or its slow one where it was built without libyaml."""
    # Imported late: most runs of a command read no YAML.
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
