"""Settings that change while the agent runs: their names, their values, and where they are kept.

A change is written to the state directory before it is in force, so that a crash can't undo it silently: it
stands, over flags and environment, until it is reset. Names are those of Cilium's options; the names of our
flags do as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog
import typer

from cilia.api.backend import ApiError, Caller
from cilia.api.types import OptionChange
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.settings.agent import SettingsError
from cilia.apps.agent.settings.events import AGGREGATION, events_limit, interval, tcp_flags
from cilia.apps.agent.state import UNREADABLE
from cilia.kit.files import write_atomic

log = structlog.get_logger(__name__)

Value = str | bool | int

SWITCH: Mapping[str, Value] = {
    "enabled": True,
    "true": True,
    "on": True,
    "disabled": False,
    "false": False,
    "off": False,
}
NO_LOGIN = "4294967295"
"""What proc(5) says of a process that nobody logged in for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """Something that may be changed live."""

    name: str
    field: str
    """Of AgentSettings, or of EndpointOptions."""
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    """What is understood, in small letters, and what it means."""
    parse: Callable[[str], Value] | None = None
    """Instead: the flag's parser, which raises BadParameter."""
    others: tuple[str, ...] = ()
    """Other names, in small letters."""

    def answers_to(self, name: str) -> bool:
        """Whether somebody means this option."""
        wanted = name.lower().removeprefix("--")
        return wanted in (self.name.lower(), self.field.replace("_", "-"), *self.others)

    def takes(self, value: Value) -> bool:
        """Whether a value that was kept is one of this option's."""
        if self.parse is None:
            return any(type(value) is type(known) and value == known for known in self.values.values())
        try:
            kept = self.parse(str(value))
        except typer.BadParameter:
            return False
        return type(kept) is type(value) and kept == value

    def read(self, text: str) -> Value:
        """A value. Raises ApiError 400."""
        if self.parse is not None:
            try:
                return self.parse(text)
            except typer.BadParameter as error:
                raise ApiError(400, f"{self.name}: {error.message}.") from error
        found = self.values.get(text.strip().lower())
        if found is None:
            raise ApiError(400, f"{self.name} can't be {text[:80]!r}; write one of {', '.join(self.values)}.")
        return found


NODE_OPTIONS = (
    Option(
        name="PolicyEnforcement",
        field="enforcement",
        values={word: word for word in ("default", "always", "never")},
        others=("enable-policy", "policy-enforcement", "policy-enforcement-mode"),
    ),
    Option(name="PolicyAuditMode", field="policy_audit_mode", values=SWITCH),
    Option(
        name="PolicyDenyResponse",
        field="policy_deny_response",
        values={word: word for word in ("none", "icmp")},
    ),
    Option(name="DropNotification", field="bpf_events_drop_enabled", values=SWITCH),
    Option(name="TraceNotification", field="bpf_events_trace_enabled", values=SWITCH),
    Option(name="PolicyVerdictNotification", field="bpf_events_policy_verdict_enabled", values=SWITCH),
    Option(name="TraceSockNotification", field="trace_sock", values=SWITCH),
    Option(
        name="MonitorAggregationLevel",
        field="aggregation",
        values=AGGREGATION,
        others=("monitor-aggregation", "monitoraggregation"),
    ),
    Option(
        name="MonitorAggregationInterval",
        field="report_interval",
        parse=interval,
        others=("monitor-aggregation-interval",),
    ),
    Option(name="MonitorAggregationFlags", field="monitor_aggregation_flags", parse=tcp_flags),
    Option(name="EventsRateLimit", field="bpf_events_default_rate_limit", parse=events_limit),
    Option(name="EventsBurstLimit", field="bpf_events_default_burst_limit", parse=events_limit),
)
TOGETHER = {"bpf_events_default_rate_limit", "bpf_events_default_burst_limit"}
"""Fields that must go with others. A change of something else is not held up by them: after a restart with
other flags they may not fit."""
ENDPOINT_OPTIONS = (
    Option(name="PolicyAuditMode", field="audit", values=SWITCH, others=("policy-audit-mode",)),
)


def read_change(change: OptionChange, options: Sequence[Option]) -> dict[str, Value | None]:
    """New values by field, None for those that are reset. Raises ApiError 400."""
    if not change.options and not change.reset:
        raise ApiError(400, "Nothing is to be changed; name an option and its value.")
    found: dict[str, Value | None] = {}
    for name in change.reset:
        found[_option(name, options).field] = None
    for name, text in change.options.items():
        option = _option(name, options)
        if option.field in found:
            raise ApiError(400, f"{option.name} is named twice; name it once.")
        found[option.field] = option.read(text)
    return found


def _option(name: str, options: Sequence[Option]) -> Option:
    for option in options:
        if option.answers_to(name):
            return option
    known = ", ".join(option.name for option in options)
    raise ApiError(
        400, f"There is no option {name[:80]!r} that changes while the agent runs; there are {known}."
    )


def option_of(field: str, options: Sequence[Option] = NODE_OPTIONS) -> Option | None:
    """The option that changes a field, if one does."""
    return next((option for option in options if option.field == field), None)


class LiveSettings:
    """The agent's settings as they are now: those it was started with, and the changes over them."""

    def __init__(self, settings: AgentSettings) -> None:
        """Takes up what was changed before a restart."""
        self._started = settings
        self._path = settings.state_dir / "live.json"
        self._changes = _load(self._path)
        for field, value in self._changes.items():
            log.warning("changed while an agent ran", setting=field, value=value, undo="cilia config --reset")

    @property
    def settings(self) -> AgentSettings:
        """All of them."""
        return dataclasses.replace(self._started, **self._changes)  # type: ignore[arg-type]

    @property
    def changed(self) -> Mapping[str, Value]:
        """What was changed live, by field."""
        return self._changes

    def source(self, field: str) -> str:
        """Where a value comes from."""
        return "live" if field in self._changes else self._started.sources.get(field, "default")

    def change(self, wanted: Mapping[str, Value | None], caller: Caller) -> None:
        """Take up values, None to reset, and say who wanted them. Raises OSError, and ApiError 400 for what
        makes no sense together; nothing changed then."""
        before = self.settings
        changes = dict(self._changes)
        for field, value in wanted.items():
            if value is None:
                changes.pop(field, None)
            else:
                changes[field] = value
        if TOGETHER & wanted.keys():
            self._check(changes)
        if changes:
            write_atomic(self._path, msgspec.json.encode(changes))
        else:
            self._path.unlink(missing_ok=True)
        self._changes = changes
        for field in wanted:
            after = getattr(self.settings, field)
            log.warning(
                "setting changed", setting=field, before=getattr(before, field), after=after, **who(caller)
            )

    def _check(self, changes: Mapping[str, Value]) -> None:
        try:
            dataclasses.replace(self._started, **changes).check()  # type: ignore[arg-type]
        except SettingsError as error:
            names = " and ".join(option.name for option in NODE_OPTIONS if option.field in TOGETHER)
            raise ApiError(400, f"{names} go together: set both, or none.") from error


def _load(path: Path) -> dict[str, Value]:
    """The changes on disk; those that are not understood are left out and told."""
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=dict[str, str | bool | int])
    except FileNotFoundError:
        return {}
    except UNREADABLE as error:
        log.error("the file of changed settings is not usable", file=path.name, error=str(error))
        return {}
    options = {option.field: option for option in NODE_OPTIONS}
    good = {key: value for key, value in saved.items() if key in options and options[key].takes(value)}
    for key in saved.keys() - good.keys():
        log.error("a changed setting is not understood and left out", setting=key, value=saved[key])
    return good


def who(caller: Caller) -> dict[str, str | int]:
    """The caller for a log line: process, user, command, and who logged in, where that is known."""
    found: dict[str, str | int] = {"pid": caller.pid, "uid": caller.uid}
    for name, file in (("command", "comm"), ("login_uid", "loginuid")):
        try:
            text = Path(f"/proc/{caller.pid}/{file}").read_text().strip()
        except OSError:
            continue
        if text != NO_LOGIN:
            found[name] = text
    return found
