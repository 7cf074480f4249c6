"""Addresses, prefixes and ports as flags take them: texts that stay as they are, or are refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from typer import BadParameter


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
