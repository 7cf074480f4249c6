"""Both ends of service traffic, run as `python -IS services_end.py ROLE ...` inside a pod, a node or outside.

serve NAME NUMBER PROTOCOL:PORT...
    Answers each line or datagram with a line of JSON: who answers, and which client it sees. A request may be
    JSON with `want`: that many bytes more come along. SCTP INITs get NUMBER as the initiate tag.
ask
    Reads requests as lines of JSON, writes one line back for each:
    {"ask": [question, ...]}      all at once; a question is protocol (tcp, udp: connected, udp-each: not,
                                  sctp), address, port, timeout, and if wanted source_port, size, want
    {"open": id, **question}      a connection or a socket that stays, and its first answer
    {"say": id, ...}              one exchange more on it
    {"close": id}
    {"start": id, "rate": n, "together": n, **question}
                                  so many new connections (or exchanges of one udp socket) a second
    {"stop": id}                  counts by who answered, failures with the second in which they came
    An answer has `who`, `client`, `got` as the server says, `peer` as the client sees it, or `error`.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from cilia.lab import podinit

BACKLOG = 4096
RESEND_AFTER = 0.25
ANSWERED = 10.0
"""Seconds to wait for an answer, if the question does not say."""
ERRORS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EMSGSIZE: "too large",
}
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "udp-each": socket.SOCK_DGRAM}


def reason(error: OSError) -> str:
    """A word for what went wrong."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return ERRORS.get(error.errno or 0, errno.errorcode.get(error.errno or 0, type(error).__name__))


def plain(address: str) -> str:
    """An address as people write it: IPv4 without the mapping."""
    return address.removeprefix("::ffff:")


def family_of(address: str) -> socket.AddressFamily:
    """Of the text of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# -- the server ---------------------------------------------------------------------------------------------


class Server:
    """One loop for all ports of a pod."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.selector = selectors.DefaultSelector()
        self.pending: dict[socket.socket, tuple[tuple[Any, ...], bytes]] = {}

    def listen(self, protocol: str, port: int) -> None:
        """Serve a port over both families; SCTP in a thread of its own."""
        if protocol == "sctp":
            for family in (socket.AF_INET, socket.AF_INET6):
                threading.Thread(target=self.answer_inits, args=(family, port), daemon=True).start()
            return
        server = socket.socket(socket.AF_INET6, KINDS[protocol])
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        server.setblocking(False)
        if protocol == "tcp":
            server.listen(BACKLOG)
            self.selector.register(server, selectors.EVENT_READ, self.accept)
        else:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self.selector.register(server, selectors.EVENT_READ, self.answer_datagram)

    def run(self) -> None:
        """For ever."""
        while True:
            for key, _ in self.selector.select():
                try:
                    key.data(key.fileobj)
                except BlockingIOError:
                    continue
                except OSError:
                    if key.fileobj in self.pending:
                        self.forget(key.fileobj)

    def reply(self, request: bytes, client: tuple[Any, ...]) -> bytes:
        """The line for one request."""
        want = json.loads(request).get("want", 0) if request.startswith(b"{") else 0
        answer = {"who": self.name, "client": plain(client[0]), "port": client[1], "got": len(request)}
        return json.dumps(answer | ({"more": "x" * want} if want else {})).encode() + b"\n"

    def accept(self, server: socket.socket) -> None:
        """Take all connections that wait."""
        while True:
            connection, client = server.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pending[connection] = (client, b"")
            self.selector.register(connection, selectors.EVENT_READ, self.answer_lines)

    def answer_lines(self, connection: socket.socket) -> None:
        """Answer each whole line."""
        client, rest = self.pending[connection]
        data = connection.recv(1 << 18)
        if not data:
            self.forget(connection)
            return
        *lines, rest = (rest + data).split(b"\n")
        self.pending[connection] = (client, rest)
        for line in lines:
            connection.setblocking(True)
            connection.sendall(self.reply(line, client))
            connection.setblocking(False)

    def forget(self, connection: socket.socket) -> None:
        """The connection is over."""
        self.selector.unregister(connection)
        del self.pending[connection]
        connection.close()

    def answer_datagram(self, server: socket.socket) -> None:
        """From the address that was asked (RFC 3542, section 6)."""
        data, control, _, sender = server.recvmsg(1 << 16, 64)
        asked = [(level, kind, value[:16] + bytes(4)) for level, kind, value in control]
        server.sendmsg([self.reply(data, sender)], asked, 0, sender)

    def answer_inits(self, family: int, port: int) -> None:
        """INIT ACK with this server's number."""
        server = socket.socket(family, socket.SOCK_RAW, podinit.SCTP)
        while True:
            data, sender = server.recvfrom(1 << 16)
            fields = podinit.sctp_fields(data, family)
            if fields is None or fields[3] != podinit.SCTP_INIT or fields[1] != port:
                continue
            packet = podinit.sctp_packet(port, fields[0], fields[4], podinit.SCTP_INIT_ACK, self.number)
            try:
                server.sendto(packet, (sender[0], 0))
            except OSError:
                continue


# -- the client ---------------------------------------------------------------------------------------------


def request_of(question: dict[str, Any]) -> bytes:
    """What to send: `size` bytes in all, or just enough."""
    text = json.dumps({"want": question["want"]}) if question.get("want") else "hello"
    return text.encode().ljust(question.get("size", 0))


class Talk:
    """A socket that asks one server again and again."""

    def __init__(self, question: dict[str, Any]) -> None:
        self.question = question
        self.target = (question["address"], question["port"])
        self.timeout = question.get("timeout", ANSWERED)
        self.protocol = question["protocol"]
        self.socket = socket.socket(family_of(self.target[0]), KINDS[self.protocol])
        try:
            self.connect()
        except OSError:
            self.socket.close()
            raise

    def connect(self) -> None:
        """All that comes before the first exchange."""
        if self.protocol == "tcp":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.settimeout(self.timeout)
        if self.question.get("source_port"):
            self.socket.bind(("::" if ":" in self.target[0] else "0.0.0.0", self.question["source_port"]))
        if self.protocol != "udp-each":
            self.socket.connect(self.target)
        if self.protocol == "tcp":
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def say(self, question: dict[str, Any]) -> dict[str, Any]:
        """One exchange; raises OSError."""
        data = request_of(question)
        if self.protocol == "tcp":
            self.socket.sendall(data + b"\n")
            answer = self.line()
            peer = self.socket.getpeername()
        else:
            answer, peer = self.exchange(data)
        found: dict[str, Any] = json.loads(answer)
        return found | {"peer": plain(peer[0]), "peer_port": peer[1], "more": len(found.get("more", ""))}

    def line(self) -> bytes:
        """The next line of a connection."""
        answer = bytearray()
        while not answer.endswith(b"\n"):
            part = self.socket.recv(1 << 18)
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            answer += part
        return bytes(answer)

    def exchange(self, data: bytes) -> tuple[bytes, tuple[Any, ...]]:
        """A datagram and its answer, sent again a few times."""
        deadline = time.monotonic() + self.timeout
        self.socket.settimeout(min(RESEND_AFTER, self.timeout))
        while True:
            if self.protocol == "udp-each":
                self.socket.sendto(data, self.target)
            else:
                self.socket.send(data)
            try:
                answer, peer = self.socket.recvfrom(1 << 16)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
                continue
            return answer, peer if self.protocol == "udp-each" else self.socket.getpeername()

    def close(self) -> None:
        """The end."""
        self.socket.close()


def ask_sctp(question: dict[str, Any]) -> dict[str, Any]:
    """An INIT from a raw socket; who answers is the number in its answer."""
    family = family_of(question["address"])
    port = question.get("source_port") or 32768 + int.from_bytes(os.urandom(2), "big") % 28000
    tag = int.from_bytes(os.urandom(4), "big") | 1
    deadline = time.monotonic() + question.get("timeout", ANSWERED)
    with socket.socket(family, socket.SOCK_RAW, podinit.SCTP) as asker:
        asker.settimeout(RESEND_AFTER)
        while time.monotonic() < deadline:
            packet = podinit.sctp_packet(port, question["port"], 0, podinit.SCTP_INIT, tag)
            asker.sendto(packet, (question["address"], 0))
            try:
                data, peer = asker.recvfrom(1 << 16)
            except TimeoutError:
                continue
            fields = podinit.sctp_fields(data, family)
            if fields is not None and fields[1:4] == (port, tag, podinit.SCTP_INIT_ACK):
                return {"who": fields[4], "peer": plain(peer[0]), "peer_port": fields[0]}
    return {"error": "timeout"}


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """One question, whatever comes of it."""
    started = time.monotonic()
    try:
        if question["protocol"] == "sctp":
            found = ask_sctp(question)
        else:
            talk = Talk(question)
            try:
                found = talk.say(question)
            finally:
                talk.close()
    except OSError as error:
        found = {"error": reason(error)}
    return found | {"ms": round((time.monotonic() - started) * 1000, 1)}


class Load:
    """New connections at a steady rate, each asked once; or one UDP socket that asks again and again."""

    def __init__(self, question: dict[str, Any]) -> None:
        self.question = question
        self.target = (question["address"], question["port"])
        self.counts: dict[str, int] = {}
        self.failures: list[tuple[float, str]] = []
        self.slowest = 0.0
        self.stopping = threading.Event()
        self.started = time.monotonic()
        run = self.connections if question["protocol"] == "tcp" else self.datagrams
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def stop(self) -> dict[str, Any]:
        """End, with what has been seen."""
        self.stopping.set()
        self.thread.join(30)
        return self.progress()

    def progress(self) -> dict[str, Any]:
        """What has been seen so far."""
        failures = list(self.failures)
        return {
            "counts": dict(self.counts),
            "failed": len(failures),
            "failures": failures[:50],
            "slowest": round(self.slowest, 3),
            "seconds": round(time.monotonic() - self.started, 3),
        }

    def fail(self, why: str) -> None:
        """Note a failure."""
        self.failures.append((round(time.monotonic() - self.started, 3), why))

    def count(self, answer: bytes, since: float) -> None:
        """Note an answer."""
        who = str(json.loads(answer)["who"])
        self.counts[who] = self.counts.get(who, 0) + 1
        self.slowest = max(self.slowest, time.monotonic() - since)

    def datagrams(self) -> None:
        """One socket, one source port; an exchange without an answer fails."""
        talk = Talk(self.question | {"timeout": 1.0})
        pause = 1 / self.question["rate"]
        while not self.stopping.is_set():
            since = time.monotonic()
            try:
                answer, _ = talk.exchange(b"hello")
                self.count(answer, since)
            except OSError as error:
                self.fail(reason(error))
            time.sleep(pause)
        talk.close()

    def connections(self) -> None:
        """Many at a time, none waits for another."""
        selector = selectors.DefaultSelector()
        rate, made = self.question["rate"], 0
        limit = self.question.get("timeout", ANSWERED)
        open_: dict[socket.socket, float] = {}
        while open_ or not self.stopping.is_set():
            now = time.monotonic()
            due = int((now - self.started) * rate)
            if not self.stopping.is_set():
                for _ in range(min(due - made, 64)):
                    made += 1
                    self.begin(selector, open_, now)
            for key, _ in selector.select(0.002):
                self.go_on(selector, open_, key)
            for late in [one for one, since in open_.items() if now - since > limit][:8]:
                self.fail("timeout")
                self.end(selector, open_, late)

    def begin(self, selector: selectors.BaseSelector, open_: dict[socket.socket, float], now: float) -> None:
        """Start one connection."""
        made = socket.socket(family_of(self.target[0]), socket.SOCK_STREAM)
        made.setblocking(False)
        code = made.connect_ex(self.target)
        if code not in (0, errno.EINPROGRESS):
            self.fail(reason(OSError(code, "")))
            made.close()
            return
        open_[made] = now
        selector.register(made, selectors.EVENT_WRITE)

    def go_on(
        self, selector: selectors.BaseSelector, open_: dict[socket.socket, float], key: selectors.SelectorKey
    ) -> None:
        """Send when connected, count when answered."""
        one: socket.socket = key.fileobj  # type: ignore[assignment]
        try:
            if key.events == selectors.EVENT_WRITE:
                one.send(b"hello\n")
                selector.modify(one, selectors.EVENT_READ)
                return
            answer = one.recv(4096)
            if not answer:
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            self.count(answer, open_[one])
        except OSError as error:
            self.fail(reason(error))
        self.end(selector, open_, one)

    @staticmethod
    def end(selector: selectors.BaseSelector, open_: dict[socket.socket, float], one: socket.socket) -> None:
        """Close one connection."""
        selector.unregister(one)
        del open_[one]
        one.close()


class Client:
    """What `ask` keeps between requests."""

    def __init__(self) -> None:
        self.talks: dict[str, Talk] = {}
        self.loads: dict[str, Load] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request."""
        if "ask" in request:
            return {"answers": self.ask_all(request["ask"])}
        if "open" in request:
            try:
                self.talks[request["open"]] = Talk(request)
            except OSError as error:
                return {"error": reason(error)}
            return self.say(request["open"], request)
        if "say" in request:
            return self.say(request["say"], request)
        if "close" in request:
            self.talks.pop(request["close"]).close()
            return {}
        if "start" in request:
            self.loads[request["start"]] = Load(request)
            return {}
        if "progress" in request:
            return self.loads[request["progress"]].progress()
        return self.loads.pop(request["stop"]).stop()

    def say(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """An exchange on what is open."""
        talk = self.talks[name]
        talk.timeout = request.get("timeout", talk.timeout)
        talk.socket.settimeout(talk.timeout)
        try:
            return talk.say(request)
        except OSError as error:
            return {"error": reason(error)}

    @staticmethod
    def ask_all(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each in a thread, so that one that waits delays nobody."""
        answers: list[dict[str, Any]] = [{} for _ in questions]

        def run(number: int) -> None:
            answers[number] = ask(questions[number])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(questions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


def main(role: str, *arguments: str) -> None:
    """See the module."""
    if role == "serve":
        server = Server(arguments[0], int(arguments[1]))
        for text in arguments[2:]:
            protocol, _, port = text.partition(":")
            server.listen(protocol, int(port))
        server.run()
    client = Client()
    for line in sys.stdin:
        print(json.dumps(client.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
