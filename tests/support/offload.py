"""What a device leaves to the next: a veth pair finishes neither checksums nor segments unless told to."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from contextlib import closing

SIOCETHTOOL = 0x8946
TX_CHECKSUMS, SEGMENTATION = 0x17, 0x1F


def switch_offload(device: str, feature: int, on: bool) -> None:
    """What `ethtool -K` does, in the network namespace of this thread."""
    value = array.array("B", struct.pack("=II", feature, on))
    request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def finish_packets(device: str) -> None:
    """Have packets leave a device as they leave one of a real network, in the namespace of this thread."""
    for feature in (TX_CHECKSUMS, SEGMENTATION):
        switch_offload(device, feature, on=False)
