"""Answers of GetFlows on their way to the terminal or a pipe, in one of the forms of flows.py."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial

from cilia.cli import flows, readers
from cilia.cli.flow_json import Writer
from cilia.cli.live import LiveLine
from cilia.cli.output import printable_json, printable_lines
from cilia.proto.observer import observer_pb2

Response = observer_pb2.GetFlowsResponse


class Form(enum.StrEnum):
    """How flows are printed."""

    COMPACT = "compact"
    DICT = "dict"
    JSON = "json"
    JSONPB = "jsonpb"
    TABLE = "table"
    TAB = "tab"


JSON_FORMS = (Form.JSON, Form.JSONPB)
TABLES = (Form.TABLE, Form.TAB)


class Colour(enum.StrEnum):
    """When to colour."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def wants_colour(choice: Colour) -> bool:
    """Whether to colour: for AUTO a terminal whose user has nothing against colours."""
    if choice is Colour.AUTO:
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return choice is Colour.ALWAYS


class Printer:
    """Prints responses as they come, and at the end on standard error how complete they were."""

    def __init__(self, form: Form, style: flows.Style, *, follow: bool = False, silent: bool = False) -> None:
        """`silent`: nothing but flows, whatever is missing."""
        self._form = form
        self._style = style
        self._silent = silent
        self._follow = follow
        self._rows: list[tuple[str, ...]] = []
        self._blocks = 0
        self._json = Writer()
        self.counted = flows.AnswerCounts(style)

    def print_all(self, responses: Iterable[Response]) -> None:
        """Until the answer ends, the user has seen enough (Ctrl-C), or nobody reads what follows."""
        try:
            live = self._follow and not self._silent and sys.stderr.isatty()
            seen = readers.noticed() if self._follow else nullcontext()
            with seen, LiveLine(lambda: self.counted.flows, self.counted.sentence, on=live) as line:
                for response in responses:
                    if self.counted.add(response):
                        line.print(partial(self._print, response))
        except KeyboardInterrupt:
            pass
        if self._form in TABLES:
            print(printable_lines("\n".join(flows.aligned(self._rows, self._style))))
        if self._form not in JSON_FORMS and not self._silent:
            self._tell(self.counted.sentence())

    def _print(self, response: Response) -> None:
        if self._form in JSON_FORMS:
            self._print_json(response)
        elif response.HasField("flow"):
            self._print_flow(response)
        elif response.HasField("lost_events"):
            self._tell(flows.gap_text(response, self._style))
        elif response.HasField("node_status"):
            self._tell(flows.node_text(response, self._style))
        # A pipe's reader wants flows as they come, too; an answer from history comes at once anyway.
        if self._follow:
            sys.stdout.flush()

    def _print_flow(self, response: Response) -> None:
        if self._form in TABLES:
            self._rows.append(flows.table_row(response, self._style))
            return
        if self._form is Form.DICT and self._blocks:
            print(flows.BETWEEN_BLOCKS)
        self._blocks += 1
        print(printable_lines(flows.LINES[self._form.value](response, self._style)))

    def _print_json(self, response: Response) -> None:
        """States of nodes go where other tools expect them: not between the flows they read."""
        line = printable_json(self._json(response))
        if response.HasField("node_status"):
            self._tell(line)
        else:
            print(line)

    def _tell(self, text: str) -> None:
        """On standard error, after what was printed before."""
        if not self._silent:
            sys.stdout.flush()
            print(printable_lines(text), file=sys.stderr)
