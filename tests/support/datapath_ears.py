"""What a world's programs say, and packets to make them speak."""

from __future__ import annotations

import numpy as np
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet

from tests.support.datapath_world import World
from tests.support.ring_reader import Ring

TRACE, VERDICT = 2, 3

SPOOFED = IP(src="10.9.9.9", dst="10.0.0.12") / UDP()
"""Drops with INVALID_SOURCE_IP (132)."""


class Ears:
    """Both rings of a world."""

    def __init__(self, world: World) -> None:
        record = world.layout.dtype("event")
        self._priority = Ring(world.dataplane.maps["events_priority"], record)
        self._normal = Ring(world.dataplane.maps["events"], record)
        self.read()

    def read(self) -> tuple[list[np.void], list[np.void]]:
        """(priority, normal) since the last time."""
        return self._priority.read(), self._normal.read()

    def drops(self) -> list[np.void]:
        return self.read()[0]

    def traces(self) -> list[np.void]:
        return [event for event in self.read()[1] if event["kind"] == TRACE]

    def verdicts(self) -> list[np.void]:
        """Of rules that allow what begins."""
        return [event for event in self.read()[1] if event["kind"] == VERDICT]


def ahead(flags: str) -> Packet:
    """From pod A to pod B."""
    return IP(src="10.0.0.11", dst="10.0.0.12") / TCP(sport=40000, dport=80, flags=flags)


def back(flags: str) -> Packet:
    """And its answer."""
    return IP(src="10.0.0.12", dst="10.0.0.11") / TCP(sport=80, dport=40000, flags=flags)
