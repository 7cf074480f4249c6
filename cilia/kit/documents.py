"""Documents that people write, such as YAML: read without harm, however deep, long or odd they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST_VALUES = 100_000
"""Values in a document of settings: far more than anybody writes, few enough to walk in some milliseconds."""
DEEPEST = 200
"""Levels of a document; what parses YAML calls itself for each, and its stack ends."""
SHOWN = 60
_PLAIN_LINE, _PLAIN_BRACKETS = 500, 100
"""What has no longer line and not more brackets is shallow: each level of a block costs a column."""


class DocumentError(ValueError):
    """What is no document of settings; its text is the end of a sentence on one line."""


def read_yaml(content: bytes | str, most: int = MOST_VALUES) -> Any:
    """The one document in a text; None for an empty one. Raises DocumentError."""
    # Imported late: most runs of a command read no YAML.
    import yaml

    try:
        check_depth(content)
        loader = yaml_loader()(content)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if weigh(node)[0] > most:
                raise DocumentError(f"it has more than {most} values: write fewer, or fewer aliases")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except DocumentError:
        raise
    # Tags that contradict their values (`!!bool x`) raise whatever the library comes across.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise DocumentError(f"it is not YAML: {' '.join(str(error).split())}") from error


def check_depth(content: bytes | str) -> None:
    """Raises DocumentError for YAML that is nested too deep to be read."""
    import yaml

    data = content.encode(errors="replace") if isinstance(content, str) else content
    brackets = data.count(b"[") + data.count(b"{")
    if brackets <= _PLAIN_BRACKETS and max(map(len, data.splitlines()), default=0) <= _PLAIN_LINE:
        return
    depth = 0
    for event in yaml.parse(content, Loader=yaml_loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                place = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
                raise DocumentError(f"{place}nested deeper than {DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def weigh(root: Any, weight: Callable[[Any], int] = lambda node: 1) -> tuple[int, int]:
    """What a YAML node weighs with all aliases written out, and as it is written; `weight`: of a node without
    its parts. It is asked before anything is made of the node: merged keys (`<<`) would be written out even
    where they are all the same.

    Raises DocumentError for a node within itself.
    """
    meant: dict[int, int] = {}
    written: dict[int, int] = {}
    todo = [(root, False)]
    while todo:
        node, parts_known = todo.pop()
        parts = _parts(node)
        if parts_known:
            if any(id(part) not in meant for part in parts):
                raise DocumentError("an alias stands for what it is in: write out what is meant")
            meant[id(node)] = written[id(node)] + sum(meant[id(part)] for part in parts)
        elif id(node) not in written:
            written[id(node)] = weight(node)
            todo.append((node, True))
            todo.extend((part, False) for part in parts)
    return meant[id(root)], sum(written.values())


def _parts(node: Any) -> list[Any]:
    if not isinstance(node.value, list):
        return []
    return [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]


def cut(text: str, longest: int = SHOWN) -> str:
    """A text for a sentence: its beginning, if it is long."""
    return text if len(text) <= longest else text[:longest] + "..."


def yaml_loader() -> Any:
    """What reads YAML: PyYAML's quick loader, or its slow one where it was built without libyaml."""
    # Imported late: most runs of a command read no YAML.
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
