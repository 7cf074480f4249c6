"""Flows in files of JSON lines: what `-o json`, `cilia hubble record` and exporters write."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf import json_format

from cilia.cli.errors import UserError
from cilia.cli.flow_json import Reader
from cilia.kit.documents import cut
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2

Response = observer_pb2.GetFlowsResponse
Request = observer_pb2.GetFlowsRequest


def answer(name: str, request: Request) -> Iterator[Response]:
    """What a server with these flows would answer; `-` is standard input. Raises UserError."""
    responses = in_window(read(name), request)
    if request.whitelist or request.blacklist:
        responses = matching(responses, request.whitelist, request.blacklist)
    if not request.number or request.follow:
        return responses
    return oldest(responses, request.number) if request.first else newest(responses, request.number)


def oldest(responses: Iterable[Response], number: int) -> Iterator[Response]:
    """So many flows from the beginning, and notes between them."""
    for response in responses:
        number -= response.HasField("flow")
        if number < 0:
            return
        yield response


def newest(responses: Iterable[Response], number: int) -> Iterator[Response]:
    """So many flows up to the end, and notes between them."""
    kept: deque[Response] = deque()
    flows = 0
    for response in responses:
        kept.append(response)
        flows += response.HasField("flow")
        while flows > number:
            flows -= kept.popleft().HasField("flow")
    yield from kept


def matching(
    responses: Iterator[Response],
    allow: Sequence[flow_pb2.FlowFilter],
    deny: Sequence[flow_pb2.FlowFilter],
) -> Iterator[Response]:
    """Those the filters let through. Raises UserError."""
    # Imported late: most files are read whole, and filters bring numpy.
    from cilia.cli.flow_matching import Matcher
    from cilia.hubble.filter_values import FilterError, UnsupportedFilter

    try:
        return filter(Matcher(allow, deny), responses)
    except (FilterError, UnsupportedFilter) as error:
        raise UserError(str(error)) from None


def in_window(responses: Iterable[Response], request: Request) -> Iterator[Response]:
    """Those between `since` and `until`, and notes without a time."""
    since = request.since.ToNanoseconds() if request.HasField("since") else None
    until = request.until.ToNanoseconds() if request.HasField("until") else None
    for response in responses:
        when = response.time.ToNanoseconds()
        inside = (since is None or when >= since) and (until is None or when <= until)
        if inside or not (when or response.HasField("flow")):
            yield response


def read(name: str) -> Iterator[Response]:
    """Responses of a file of JSON lines. Raises UserError."""
    reader = Reader()
    try:
        with open(0 if name == "-" else name, encoding="utf-8", closefd=name != "-") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield read_line(reader, line, f"line {number} of {called(name)}")
    except UnicodeDecodeError:
        raise UserError(f"{called(name)} is no text: it needs JSON lines, as -o json prints them") from None
    except OSError as error:
        raise UserError(f"can't read {called(name)}: {os.strerror(error.errno or 0)}") from None


def read_line(reader: Reader, line: str, where: str) -> Response:
    """One response. Raises UserError."""
    try:
        return reader(line)
    except (json_format.ParseError, RecursionError) as error:
        reason = cut(str(error).splitlines()[0].rstrip("."), 200)
        raise UserError(f"{where} is not a flow, as -o json prints them: {reason}") from None


def called(name: str) -> str:
    """The file in a sentence."""
    return "standard input" if name == "-" else name
