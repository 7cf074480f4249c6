"""How a field of a part's settings is a flag: what may be written, its variable and its heading.

A field says it in its type, `Annotated[int, typer.Option(min=1, help="...")] = 5`. Parsers take what a
command line or a variable has, and defaults, too, which they leave alone.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, get_args, get_type_hints

from typer import BadParameter
from typer.models import OptionInfo

from cilia.kit.durations import parse_duration


def parameters(parts: Iterable[tuple[str, type]]) -> Iterator[inspect.Parameter]:
    """A command's parameters for all fields of (heading, dataclass)."""
    for heading, part in parts:
        types = get_type_hints(part, include_extras=True)
        for field in dataclasses.fields(part):
            kind, option = get_args(types[field.name])
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[kind, _placed(option, field.name, heading)],
            )


def _placed(option: OptionInfo, field: str, heading: str) -> OptionInfo:
    """Under its heading, and with the variable CILIA_<FIELD> unless it has another."""
    placed = copy.copy(option)
    placed.rich_help_panel = heading
    placed.envvar = placed.envvar or f"CILIA_{field.upper()}"
    return placed


def one_of(*known: str) -> Callable[[str], str]:
    """Refuses a value that is none of those known."""

    def word(text: str) -> str:
        if text not in known:
            words = [each or "empty" for each in known]
            raise BadParameter(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return text

    return word


def prefixes(text: str) -> str:
    """Refuses what is no list of prefixes."""
    try:
        for part in filter(None, text.split(",")):
            ipaddress.ip_network(part.strip(), strict=False)
    except ValueError as error:
        raise BadParameter(f"{error}: write prefixes with commas") from error
    return text


def address(version: int) -> Callable[[str], str]:
    """Refuses what is no address of this family that one host can have."""

    def address(text: str) -> str:
        try:
            found = ipaddress.ip_address(text)
        except ValueError as error:
            raise BadParameter(str(error)) from error
        odd = found.is_unspecified or found.is_multicast or found.is_loopback
        if found.version != version or odd or getattr(found, "ipv4_mapped", None):
            raise BadParameter(f"must be an IPv{version} address that nobody has, like the default")
        return text

    return address


def ports(text: str) -> str:
    """Refuses what is no range of ports."""
    first, _, last = text.replace("-", ",").partition(",")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65536):
        raise BadParameter("must be FIRST,LAST like 30000,32767")
    return text


def power_of_two(text: str | int) -> int:
    """A number such as 65536. Cilium's charts write one less (4095) and mean as many."""
    found = int(text) if str(text).strip().isdecimal() else 0
    if found > 2 and not found & (found + 1):
        found += 1
    if found < 1 or found & (found - 1):
        raise BadParameter("must be a power of two")
    return found


def size(text: str | int) -> int:
    """A number of bytes such as 1Gi."""
    found = re.fullmatch(r"(\d+)(|Ki|Mi|Gi|Ti)", str(text).strip())
    if found is None or not int(found[1]):
        raise BadParameter("must be a number of bytes such as 512Mi or 10Gi")
    return int(found[1]) << 10 * ("", "Ki", "Mi", "Gi", "Ti").index(found[2])


def duration(text: str | float) -> float:
    """Seconds; none at all is understood."""
    try:
        return parse_duration(str(text).strip().lower())
    except ValueError as error:
        raise BadParameter(str(error)) from error


def period(text: str | float) -> float:
    """Seconds, more than none."""
    seconds = duration(text)
    if not seconds:
        raise BadParameter("must be a duration such as 60s, 12h or 7d")
    return seconds
