"""The executable a container runtime calls: carries the call to the agent and the answer back.

It runs once or twice in the life of each pod and in its way, so it is one file and imports only modules
written in C: starting Python is most of its time. It understands nothing of the call but its command.
`cilia.plugins.cni.install` writes the values of the constants below and drops comments and
annotations; the runtime passes neither arguments nor an environment of ours.
"""

import _socket
import posix

SOCKET_PATH = b"/run/cilia/cni.sock"
QUEUE_PATH = b"/run/cilia/deleteQueue"
VERSIONS = b'{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}'
NEWEST = "1.1.0"
QUEUE_LIMIT = 1024
INPUT_LIMIT = 1048576
ANSWER_SECONDS = 60.0
DELETE_SECONDS = 30.0
LOCKED_SECONDS = 5.0

NOT_AVAILABLE = 50
TRY_AGAIN_LATER = 11
IO_FAILURE = 5
INVALID_ENVIRONMENT = 4


def main() -> int:
    try:
        return serve()
    except OSError as error:
        return refuse(
            IO_FAILURE,
            "Standard input or output failed ("
            + posix.strerror(error.errno or IO_FAILURE)
            + "); call again.",
        )


def serve() -> int:
    command = posix.environ.get(b"CNI_COMMAND", b"")
    if command == b"VERSION":
        return answer(0, VERSIONS)
    stdin = read_input()
    if stdin is None:
        return refuse(IO_FAILURE, "Standard input has more than 1 MiB; a network configuration is smaller.")
    frame = encode_frame(stdin)
    reply, problem = ask(frame, DELETE_SECONDS if command == b"DEL" else ANSWER_SECONDS)
    if reply is not None:
        return answer(reply[0], reply[1:])
    if command == b"DEL":
        return defer(frame)
    code = NOT_AVAILABLE if command == b"STATUS" else TRY_AGAIN_LATER
    return refuse(
        code, "The Cilia agent doesn't answer (" + problem + "); see that cilia-agent runs, and try again."
    )


def read_input() -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while size <= INPUT_LIMIT:
        part = posix.read(0, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
    return None


def encode_frame(stdin: bytes) -> bytes:
    block = b"\0".join([k + b"=" + v for k, v in posix.environ.items() if k.startswith(b"CNI_")])
    return b"CILIACNI1" + len(block).to_bytes(4, "big") + len(stdin).to_bytes(4, "big") + block + stdin


# Without a whole answer the call counts as not made: ADD is retried and DEL repeated, both harmlessly.
def ask(frame: bytes, seconds: float) -> tuple[bytes | None, str]:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(seconds)
    try:
        connection.connect(SOCKET_PATH)
        connection.sendall(frame)
        connection.shutdown(_socket.SHUT_WR)
        parts = []
        while True:
            part = connection.recv(65536)
            if not part:
                break
            parts.append(part)
    except TimeoutError:
        return None, "no answer in time"
    except OSError as error:
        return None, posix.strerror(error.errno) if error.errno else "connection lost"
    finally:
        connection.close()
    reply = b"".join(parts)
    if not reply:
        return None, "it closed the connection"
    return reply, ""


# The agent serves before it replays the queue, and reads the queue under the lock: so whoever gets no answer
# while holding the lock is sure to be replayed.
def defer(frame: bytes) -> int:
    container = posix.environ.get(b"CNI_CONTAINERID", b"")
    interface = posix.environ.get(b"CNI_IFNAME", b"")
    if not 0 < len(container) <= 100 or len(interface) > 15:
        return refuse(INVALID_ENVIRONMENT, "CNI_CONTAINERID or CNI_IFNAME is missing or too long.")
    try:
        lock = open_queue()
    except OSError as error:
        return refuse_to_queue(error)
    try:
        posix.lockf(lock, posix.F_LOCK, 0)
        reply, _ = ask(frame, LOCKED_SECONDS)
        if reply is not None:
            return answer(reply[0], reply[1:])
        name = QUEUE_PATH + b"/" + (container.hex() + "-" + interface.hex()).encode()
        if len(posix.listdir(QUEUE_PATH)) > QUEUE_LIMIT and not exists(name):
            return refuse(
                TRY_AGAIN_LATER,
                "The Cilia agent is away and the queue of deletions is full; start the agent.",
            )
        write_durably(name, frame)
    except OSError as error:
        return refuse_to_queue(error)
    finally:
        posix.close(lock)
    return answer(0, b"")


def open_queue() -> int:
    try:
        posix.mkdir(QUEUE_PATH, 0o700)
    except FileExistsError:
        pass
    return posix.open(QUEUE_PATH + b"/.lock", posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, 0o600)


def exists(name: bytes) -> bool:
    try:
        posix.stat(name)
    except FileNotFoundError:
        return False
    return True


def write_durably(name: bytes, frame: bytes) -> None:
    scratch = QUEUE_PATH + b"/.new"
    descriptor = posix.open(scratch, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, frame)
        posix.fsync(descriptor)
    finally:
        posix.close(descriptor)
    posix.rename(scratch, name)
    directory = posix.open(QUEUE_PATH, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        posix.fsync(directory)
    finally:
        posix.close(directory)


def refuse_to_queue(error: OSError) -> int:
    return refuse(
        TRY_AGAIN_LATER,
        "The Cilia agent is away and the deletion can't be queued ("
        + posix.strerror(error.errno or IO_FAILURE)
        + "); make room or start the agent.",
    )


def refuse(code: int, sentence: str) -> int:
    document = '{"cniVersion":"%s","code":%d,"msg":"%s"}' % (NEWEST, code, sentence)  # noqa: UP031
    try:
        return answer(1, document.encode())
    except OSError:
        return 1


def answer(exit_code: int, output: bytes) -> int:
    write_all(1, output)
    return exit_code


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[posix.write(descriptor, data) :]


if __name__ == "__main__":
    posix._exit(main())
