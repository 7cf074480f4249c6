"""The first process of a pod: makes the sandbox, serves echo, probes other pods on request.

Self-contained on purpose: it runs as `python -IS podinit.py CONFIG CONTROL_FD READY_FD`, without the site
packages, so that a pod starts in some 30 ms and holds little memory. CONFIG is JSON: `netns` (path),
`hostname`, `cgroup` (path), `serve` (list of [protocol, port]), `command` (list, may be empty),
`environment` (dict), `sandbox` (false: only the network).

The first line on READY_FD is the process id as the lab sees it, or a sentence that says what failed.

CONTROL_FD is a listening unix socket. A connection carries one JSON request per line, with one line back:
    {"probe": [{"protocol": "tcp"|"udp"|"sctp"|"icmp", "address": ..., "port": ..., "timeout": seconds}, ...]}
      (with `source`, an own address, where the pod has several)
      -> {"results": [{"answer": "ok"|"timeout"|"refused"|"unreachable"|..., "ms": float}, ...]}
      SCTP is one INIT and its answer, written and read as raw packets: the kernel need not know the protocol
    {"stream": {"address": ..., "port": ..., "bytes_per_second": n}}
      -> {"started": true}; a TCP stream to an echo server, until it is told to finish
    {"progress": true} -> {"sent": n, "received": n, "failure": ...} of the running stream
    {"finish": true} -> the same, {"intact": bool, "longest_pause_ms": n}
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_NAME, PR_CAPBSET_READ, PR_CAPBSET_DROP = 15, 23, 24
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

CONTAINER_CAPABILITIES = {
    0: "chown",
    1: "dac_override",
    3: "fowner",
    4: "fsetid",
    5: "kill",
    6: "setgid",
    7: "setuid",
    8: "setpcap",
    10: "net_bind_service",
    13: "net_raw",
    18: "sys_chroot",
    27: "mknod",
    29: "audit_write",
    31: "setfcap",
}
"""What container engines leave a container by default, as in linux/capability.h."""

CAPABILITY_VERSION_3 = 0x20080522
CHUNK = 16384
RESEND_AFTER = 0.15
"""Seconds: a lost datagram is not an answer."""

SCTP = 132
SCTP_INIT, SCTP_INIT_ACK, SCTP_ABORT = 1, 2, 6

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Turn a failed system call into OSError."""
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def enter(path: str, kind: int) -> None:
    """Move into the namespace behind `path`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        check(libc.setns(descriptor, kind), path)
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    texts = (source.encode(), target.encode(), kind.encode())
    check(libc.mount(*texts, ctypes.c_ulong(flags), data.encode()), target)


def private_mounts() -> None:
    """Give the pod its own /proc, /sys, /run and an empty /sys/fs/bpf; let go of the lab's mounts."""
    check(libc.mount(b"none", b"/", b"none", ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "/")
    with open("/proc/self/mounts") as table:
        points = [line.split(" ")[1] for line in table]
    for point in reversed(points):
        if point == "/sys" or point.startswith(("/run/", "/sys/")):
            libc.umount2(point.encode(), MNT_DETACH)
    locked = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("proc", "/proc", "proc", locked)
    mount("sysfs", "/sys", "sysfs", locked | MS_RDONLY)
    mount("tmpfs", "/sys/fs/bpf", "tmpfs", locked, "mode=755,size=64k")
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")


def prepare_network() -> None:
    """Bring the loopback up and let unprivileged ping work, as container engines do."""
    with open("/proc/sys/net/ipv4/ping_group_range", "w") as setting:
        setting.write("0 2147483647")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(probe, SIOCGIFFLAGS, request))
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def drop_capabilities() -> None:
    """Keep a container's default capabilities and no others, for good."""
    capability = 0
    while libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        if capability not in CONTAINER_CAPABILITIES:
            check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "the capability bounding set")
        capability += 1
    mask = sum(1 << number for number in CONTAINER_CAPABILITIES)
    header = struct.pack("=II", CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    check(libc.capset(header, data), "the capability sets")


# -- the echo server ----------------------------------------------------------------------------------------


def listen(protocol: str, port: int) -> None:
    """Serve echo on one port, on all addresses of both families, in the background."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    server = socket.socket(socket.AF_INET6, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    if protocol == "tcp":
        server.listen(1024)
        spawn(accept_forever, server)
    else:
        spawn(echo_datagrams, server)


def spawn(target: Any, *arguments: Any) -> None:
    """Run a function in a daemon thread."""
    threading.Thread(target=target, args=arguments, daemon=True).start()


def accept_forever(server: socket.socket) -> None:
    """Answer every connection in a thread of its own."""
    while True:
        connection, _ = server.accept()
        spawn(echo_stream, connection)


def echo_stream(connection: socket.socket) -> None:
    """Send back what comes until the other side ends."""
    with connection:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return


def echo_datagrams(server: socket.socket) -> None:
    """Send every datagram back to its sender, from the address it was sent to (RFC 3542, section 6)."""
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    while True:
        try:
            data, control, _, sender = server.recvmsg(65536, 64)
            asked = [(level, kind, value[:16] + bytes(4)) for level, kind, value in control]
            server.sendmsg([data], asked, 0, sender)
        except OSError:
            # An ICMP error for an earlier answer: nothing to do with the next question.
            continue


# -- SCTP as far as its first two packets (RFC 9260) ---------------------------------------------------------


def castagnoli_table() -> list[int]:
    """CRC32c of each byte (RFC 9260, appendix A)."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CASTAGNOLI = castagnoli_table()


def sctp_packet(source: int, target: int, tag: int, chunk: int, initiate: int) -> bytes:
    """A packet with one chunk: INIT and INIT ACK carry an initiate tag, ABORT nothing."""
    body = b"" if chunk == SCTP_ABORT else struct.pack("!IIHHI", initiate, 65536, 1, 1, initiate)
    chunk_header = struct.pack("!BBH", chunk, 0, 4 + len(body))
    packet = bytearray(struct.pack("!HHII", source, target, tag, 0) + chunk_header + body)
    checksum = 0xFFFFFFFF
    for byte in packet:
        checksum = checksum >> 8 ^ CASTAGNOLI[(checksum ^ byte) & 0xFF]
    struct.pack_into("<I", packet, 8, checksum ^ 0xFFFFFFFF)
    return bytes(packet)


def sctp_fields(data: bytes, family: int) -> tuple[int, int, int, int, int] | None:
    """Source port, target port, tag, chunk type and initiate tag of what a raw socket read; None for less.

    Raw IPv4 sockets hand out the IP header, too.
    """
    if family == socket.AF_INET and data:
        data = data[(data[0] & 15) * 4 :]
    if len(data) < 16:
        return None
    source, target, tag, _, chunk = struct.unpack_from("!HHIIB", data)
    return source, target, tag, chunk, struct.unpack_from("!I", data, 16)[0] if len(data) >= 20 else 0


def listen_sctp(ports: set[int]) -> None:
    """Answer INITs to these ports, and refuse those to all others, over both families."""
    for family in (socket.AF_INET, socket.AF_INET6):
        spawn(answer_inits, socket.socket(family, socket.SOCK_RAW, SCTP), family, ports)


def answer_inits(server: socket.socket, family: int, ports: set[int]) -> None:
    """INIT ACK or ABORT for every INIT."""
    while True:
        try:
            data, sender = server.recvfrom(65536)
            fields = sctp_fields(data, family)
            if fields is None or fields[3] != SCTP_INIT:
                continue
            source, target, _, _, initiate = fields
            chunk = SCTP_INIT_ACK if target in ports else SCTP_ABORT
            server.sendto(sctp_packet(target, source, initiate, chunk, 1), (sender[0], 0))
        except OSError:
            # As above: an ICMP error for an earlier answer.
            continue


# -- the prober ---------------------------------------------------------------------------------------------


class Probe:
    """One question to one address, and how far it got."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.protocol = str(request["protocol"])
        self.port = int(request.get("port", 0))
        self.address = str(request["address"])
        self.family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self.source = str(request.get("source", ""))
        self.token = os.urandom(16)
        self.started = time.monotonic()
        self.deadline = self.started + float(request.get("timeout", 0.4))
        self.resend_at = self.started + RESEND_AFTER
        self.connecting = self.protocol == "tcp"
        self.sctp_port = 32768 + int.from_bytes(self.token[:2], "big") % 28000
        self.sctp_tag = int.from_bytes(self.token[2:6], "big") | 1
        self.answer = ""
        self.milliseconds = 0.0
        self.socket = self._open()

    def _open(self) -> socket.socket:
        if self.protocol == "icmp":
            number = socket.IPPROTO_ICMPV6 if self.family == socket.AF_INET6 else socket.IPPROTO_ICMP
            opened = socket.socket(self.family, socket.SOCK_DGRAM, number)
        elif self.protocol == "sctp":
            opened = socket.socket(self.family, socket.SOCK_RAW, SCTP)
        else:
            kind = socket.SOCK_STREAM if self.protocol == "tcp" else socket.SOCK_DGRAM
            opened = socket.socket(self.family, kind)
        opened.setblocking(False)
        if self.source:
            opened.bind((self.source, 0))
        return opened

    def start(self) -> None:
        """Ask."""
        port = 0 if self.protocol == "sctp" else self.port
        code = self.socket.connect_ex((self.address, port))
        if code not in (0, errno.EINPROGRESS):
            self.fail(code)
        elif not self.connecting:
            self.send()

    def send(self) -> None:
        """Send the question: a random token, in an echo request for ICMP (RFC 792, RFC 4443)."""
        data = self.token
        if self.protocol == "icmp":
            kind = 128 if self.family == socket.AF_INET6 else 8
            data = struct.pack("!BBHHH", kind, 0, 0, 0, 1) + data
        if self.protocol == "sctp":
            data = sctp_packet(self.sctp_port, self.port, 0, SCTP_INIT, self.sctp_tag)
        try:
            self.socket.send(data)
        except OSError as error:
            self.fail(error.errno or errno.EIO)

    def ready(self) -> None:
        """Go on after poll(2) has named the socket."""
        if self.connecting:
            code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self.fail(code)
                return
            self.connecting = False
            self.send()
            return
        try:
            data = self.socket.recv(2048)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(error.errno or errno.EIO)
            return
        if self.protocol == "sctp":
            self.read_sctp(data)
            return
        self.finish("ok" if data.endswith(self.token) else "garbled")

    def read_sctp(self, data: bytes) -> None:
        """Take the answer to our INIT; a raw socket reads everybody's packets."""
        fields = sctp_fields(data, self.family)
        if fields is None or fields[:3] != (self.port, self.sctp_port, self.sctp_tag):
            return
        if fields[3] in (SCTP_INIT_ACK, SCTP_ABORT):
            self.finish("ok" if fields[3] == SCTP_INIT_ACK else "refused")

    def fail(self, code: int) -> None:
        """Note a failed call."""
        names = {
            errno.ECONNREFUSED: "refused",
            errno.ECONNRESET: "refused",
            errno.EHOSTUNREACH: "unreachable",
            errno.ENETUNREACH: "unreachable",
            errno.EACCES: "prohibited",
            errno.EPERM: "prohibited",
        }
        self.finish(names.get(code, os.strerror(code)))

    def finish(self, answer: str) -> None:
        """Note the answer."""
        self.answer = answer
        self.milliseconds = round((time.monotonic() - self.started) * 1000, 2)
        self.socket.close()

    def tick(self, now: float) -> None:
        """Give up at the deadline; ask again when a datagram got no answer."""
        if now >= self.deadline:
            self.finish("timeout")
        elif self.protocol != "tcp" and now >= self.resend_at:
            self.resend_at = now + RESEND_AFTER
            self.send()


def probe_all(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask all questions at once and return the answers in their order."""
    probes = [Probe(request) for request in requests]
    for probe in probes:
        probe.start()
    while True:
        waiting = {probe.socket.fileno(): probe for probe in probes if not probe.answer}
        if not waiting:
            break
        poll = select.poll()
        for descriptor, probe in waiting.items():
            poll.register(descriptor, select.POLLOUT if probe.connecting else select.POLLIN)
        for descriptor, _ in poll.poll(20):
            waiting[descriptor].ready()
        now = time.monotonic()
        for probe in waiting.values():
            if not probe.answer:
                probe.tick(now)
    return [{"answer": probe.answer, "ms": probe.milliseconds} for probe in probes]


class Stream:
    """A TCP stream to an echo server whose every byte is counted and hashed, both ways."""

    def __init__(self, request: dict[str, Any]) -> None:
        import hashlib

        self.rate = float(request.get("bytes_per_second", 1 << 20))
        target = (str(request["address"]), int(request["port"]))
        self.connection = socket.create_connection(target, timeout=10)
        self.connection.settimeout(30)
        self.sent = self.received = 0
        self.sent_hash, self.received_hash = hashlib.sha256(), hashlib.sha256()
        self.longest_pause = 0.0
        self.failure = ""
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]
        for thread in self.threads:
            thread.start()

    def _send(self) -> None:
        started = time.monotonic()
        try:
            while not self.stopping.is_set():
                data = os.urandom(CHUNK)
                self.connection.sendall(data)
                self.sent_hash.update(data)
                self.sent += len(data)
                ahead = self.sent / self.rate - (time.monotonic() - started)
                if ahead > 0:
                    time.sleep(ahead)
            self.connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.failure = f"sending failed: {error}"

    def _receive(self) -> None:
        last = time.monotonic()
        try:
            while data := self.connection.recv(65536):
                now = time.monotonic()
                self.longest_pause, last = max(self.longest_pause, now - last), now
                self.received_hash.update(data)
                self.received += len(data)
        except OSError as error:
            self.failure = self.failure or f"receiving failed: {error}"

    def progress(self) -> dict[str, Any]:
        """What went through so far."""
        return {"sent": self.sent, "received": self.received, "failure": self.failure}

    def finish(self) -> dict[str, Any]:
        """End the stream in order and compare both sides."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)
        self.connection.close()
        intact = not self.failure and self.sent_hash.digest() == self.received_hash.digest()
        return self.progress() | {"intact": intact, "longest_pause_ms": round(self.longest_pause * 1000, 1)}


def serve_control(server: socket.socket) -> None:
    """Answer the lab's requests, each connection in a thread of its own."""
    while True:
        connection, _ = server.accept()
        spawn(answer_requests, connection)


def answer_requests(connection: socket.socket) -> None:
    """Answer one connection's requests until it closes."""
    streams: list[Stream] = []
    with connection, connection.makefile("rb") as lines:
        for line in lines:
            try:
                answer = answer_request(json.loads(line), streams)
            except (OSError, ValueError, KeyError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                break
    for stream in streams:
        stream.stopping.set()


def answer_request(request: dict[str, Any], streams: list[Stream]) -> dict[str, Any]:
    """Answer one request; `streams` holds the running stream of this connection, if any."""
    if "probe" in request:
        return {"results": probe_all(request["probe"])}
    if "stream" in request:
        streams.append(Stream(request["stream"]))
        return {"started": True}
    if "progress" in request and streams:
        return streams[-1].progress()
    if "finish" in request and streams:
        return streams.pop().finish()
    return {"error": "unknown request, or no stream is running"}


# -- the sandbox --------------------------------------------------------------------------------------------


def become_first_process(config: dict[str, Any]) -> None:
    """Make the sandbox around this process, which is process 1 of its pid namespace."""
    if config.get("sandbox", True):
        libc.sethostname(config["hostname"].encode(), len(config["hostname"].encode()))
        private_mounts()
    prepare_network()
    serve = config.get("serve", [])
    for protocol, port in serve:
        if protocol != "sctp":
            listen(protocol, port)
    if any(protocol == "sctp" for protocol, _ in serve):
        listen_sctp({port for protocol, port in serve if protocol == "sctp"})
    if config.get("sandbox", True):
        drop_capabilities()
    libc.prctl(PR_SET_NAME, b"pod:" + config["hostname"].encode()[:11], 0, 0, 0)


def run_command(config: dict[str, Any]) -> None:
    """Start the container's command, if it has one, with the pod's output as its own."""
    command = config.get("command") or []
    if command:
        os.posix_spawnp(
            command[0],
            command,
            config.get("environment", {}),
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGPIPE],
        )


def reap_forever() -> None:
    """Collect ended children, as the first process of a pid namespace must; end when asked to."""
    while True:
        if signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) == signal.SIGTERM:
            os._exit(0)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            continue


def child(config: dict[str, Any], control: socket.socket, ready: int) -> None:
    """The pod's side of the fork."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        become_first_process(config)
        spawn(serve_control, control)
        run_command(config)
    except OSError as error:
        os.write(ready, f"the pod's sandbox can't be made: {error}\n".encode())
        os._exit(1)
    os.write(ready, b"ready\n")
    os.close(ready)
    reap_forever()


def main(arguments: list[str]) -> None:
    """Enter the namespaces, fork process 1, and report its id once it is ready."""
    config = json.loads(arguments[1])
    control = socket.socket(fileno=int(arguments[2]))
    report = int(arguments[3])
    with open(config["cgroup"] + "/cgroup.procs", "w") as group:
        group.write(str(os.getpid()))
    enter(config["netns"], CLONE_NEWNET)
    if config.get("sandbox", True):
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID), "new namespaces")
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        os.close(report)
        child(config, control, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answers:
        answer = answers.readline()
    os.write(report, b"%d\n" % pid if answer == b"ready\n" else answer or b"the pod's first process died\n")


if __name__ == "__main__":
    main(sys.argv)
