"""One end of a conversation, run inside a namespace.

serve KIND ADDRESS          answers on port 7777 with what it was sent, and names the asker
ask KIND ADDRESS[@PORT] SIZE
                            sends SIZE bytes, expects them back; prints the address the server saw
"""

from __future__ import annotations

import errno
import random
import socket
import sys
import threading

PORT = 7777
NAME = 64
TIMEOUT = 5.0
UDP_SEGMENT, SEGMENT = 103, 1000
SO_RCVBUFFORCE = 33


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def place(text: str) -> tuple[str, int]:
    """An address, and the port behind it or the usual one."""
    address, _, port = text.partition("@")
    return address, int(port or PORT)


def exactly(stream: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        part = stream.recv(size - len(found))
        if not part:
            raise ConnectionError("closed early")
        found += part
    return bytes(found)


def serve_tcp(address: str) -> None:
    with socket.socket(family(address), socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PORT))
        listener.listen()
        print("ready", flush=True)
        stream, asker = listener.accept()
        with stream:
            stream.sendall(asker[0].encode().ljust(NAME))
            while data := stream.recv(65536):
                stream.sendall(data)


def serve_udp(address: str) -> None:
    with socket.socket(family(address), socket.SOCK_DGRAM) as server:
        server.bind((address, PORT))
        print("ready", flush=True)
        data, asker = server.recvfrom(65536)
        server.sendto(asker[0].encode().ljust(NAME) + data, asker)


def serve_datagrams(address: str) -> None:
    """Each that comes, until nobody asks any more."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        server.bind((address, PORT))
        print("ready", flush=True)
        while True:
            data, asker = server.recvfrom(65536)
            server.sendto(asker[0].encode().ljust(NAME) + data, asker)


def ask_bulk(address: str, size: int) -> str:
    """A stream that is busy both ways at once."""
    sent = random.Random(size).randbytes(size)
    with socket.create_connection(place(address), TIMEOUT) as stream:
        stream.settimeout(TIMEOUT)
        name = exactly(stream, NAME)
        sending = threading.Thread(target=stream.sendall, args=(sent,))
        sending.start()
        assert exactly(stream, size) == sent
        sending.join()
        return name.decode().strip()


def ask_batch(address: str, size: int) -> str:
    """Datagrams that the kernel cuts from one buffer, as late as it can (UDP_SEGMENT)."""
    sent = [bytes((number,)) * SEGMENT for number in range(size // SEGMENT)]
    with socket.socket(family(address), socket.SOCK_DGRAM) as asker:
        asker.settimeout(TIMEOUT)
        asker.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT)
        asker.connect(place(address))
        asker.send(b"".join(sent))
        answers = [asker.recv(65536) for _ in sent]
    assert sorted(answer[NAME:] for answer in answers) == sent
    return answers[0][:NAME].decode().strip()


def ask_again(address: str, size: int) -> str:
    """One datagram, until it is answered: the first may teach the client what fits."""
    body = random.Random(size).randbytes(size)
    with socket.socket(family(address), socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.6)
        asker.connect(place(address))
        for tries in range(8):
            try:
                asker.send(body)
                answer = asker.recv(65536)
            except (TimeoutError, OSError) as error:
                if not isinstance(error, TimeoutError) and error.errno != errno.EMSGSIZE:
                    raise
                continue
            assert answer[NAME:] == body
            return f"{answer[:NAME].decode().strip()} after {tries}"
        raise TimeoutError


def ask_tcp(address: str, size: int) -> str:
    with socket.create_connection(place(address), TIMEOUT) as stream:
        assert stream.getpeername()[:2] == place(address)
        stream.settimeout(TIMEOUT)
        name = exactly(stream, NAME)
        for at in range(0, size, 30_000):
            part = bytes(at % 251 for _ in range(min(30_000, size - at)))
            stream.sendall(part)
            assert exactly(stream, len(part)) == part
        return name.decode().strip()


def ask_udp(address: str, size: int, options: bytes = b"") -> str:
    """`options`: of IPv6, an extension header with them goes along."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as asker:
        asker.settimeout(TIMEOUT)
        if options:
            asker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, options)
            asker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, options)
        asker.connect(place(address))
        asker.send(b"q" * size)
        answer = asker.recv(65536)
        assert answer[NAME:] == b"q" * size
        return answer[:NAME].decode().strip()


def ask_udp_with_options(address: str, size: int) -> str:
    padding = bytes((0, 0, 1, 4, 0, 0, 0, 0))
    return ask_udp(address, size, padding)


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ask_ping(address: str, size: int) -> str:
    """An echo, by a raw socket: no namespace's settings are asked for leave. The kernel answers."""
    version6 = ":" in address
    kind, protocol = (128, socket.IPPROTO_ICMPV6) if version6 else (8, socket.IPPROTO_ICMP)
    body = b"q" * (size & ~1)
    plain = bytes((kind, 0, 0, 0, 0x30, 0x39, 0, 1)) + body
    sum_of = b"\0\0" if version6 else checksum(plain).to_bytes(2, "big")
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as asker:
        asker.settimeout(TIMEOUT)
        asker.sendto(plain[:2] + sum_of + plain[4:], (address, 0))
        while True:
            answer, sender = asker.recvfrom(65536)
            icmp = answer if version6 else answer[20:]
            if icmp[0] == (129 if version6 else 0) and icmp[8:] == body:
                return str(sender[0])


SERVE = {
    "tcp": serve_tcp,
    "bulk": serve_tcp,
    "udp": serve_udp,
    "udp-options": serve_udp,
    "again": serve_datagrams,
    "batch": serve_datagrams,
}
ASK = {
    "tcp": ask_tcp,
    "bulk": ask_bulk,
    "udp": ask_udp,
    "udp-options": ask_udp_with_options,
    "again": ask_again,
    "batch": ask_batch,
    "ping": ask_ping,
}


def main() -> int:
    action, kind, address, *rest = sys.argv[1:]
    try:
        if action == "serve":
            SERVE[kind](address)
        else:
            print(ASK[kind](address, int(rest[0])))
    except ConnectionRefusedError:
        print("refused", file=sys.stderr)
        return 1
    except TimeoutError:
        print("silence", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.EHOSTUNREACH, errno.EACCES):
            raise
        print("prohibited", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
