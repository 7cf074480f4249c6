"""What application records must not tell: taken out before a record is stored.

    proxy's record ─► Layer7 ─► redacted() ─► store ─► API, relay, files, metrics, history

This is the only place, and it lies before all ways out: what is not stored can't leave. Facts that are read
from a record on the way (such as the trace context of a request) are read before, the summary is made after.
No part of Cilia makes application records yet, so nothing calls this: the first that does calls it here.

The rules are Hubble's: switched off, everything stays. Switched on, the password in a URL goes (unless told
to stay), its query and fragment go if told so, Kafka's API key goes if told so; of headers only those of the
allow list stay, or those of the deny list go; with neither list all go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cilia.proto.flow import flow_pb2

REDACTED = "HUBBLE_REDACTED"
"""Stands where something was."""

URL = re.compile(
    r"(?P<scheme>[^:/?#]+:)?(?P<slashes>//)?(?(slashes)(?P<authority>[^/?#]*))(?P<path>[^?#]*)(?P<rest>.*)",
    re.DOTALL,
)
"""Parts of a URL as RFC 3986, appendix B, finds them in any text; `rest`: query and fragment."""


@dataclass(frozen=True, kw_only=True)
class RedactSettings:
    """What goes."""

    enabled: bool = False
    """Take out anything at all."""
    http_url_query: bool = False
    """Queries and fragments of URLs."""
    http_user_info: bool = True
    """Passwords in URLs."""
    kafka_api_key: bool = False
    """Keys of Kafka's requests."""
    http_headers_allow: tuple[str, ...] = ()
    """Headers whose values stay; those of all others go."""
    http_headers_deny: tuple[str, ...] = ()
    """Headers whose values go; those of all others stay. Not together with the list above."""

    def __post_init__(self) -> None:
        """Raises ValueError with a sentence when both lists of headers are given."""
        if self.http_headers_allow and self.http_headers_deny:
            raise ValueError("headers are either allowed or denied: give one of the two lists")


def redacted(record: flow_pb2.Layer7, settings: RedactSettings) -> flow_pb2.Layer7:
    """The record as it may be stored; the one given stays as it is."""
    if not settings.enabled:
        return record
    shown = flow_pb2.Layer7()
    shown.CopyFrom(record)
    if shown.HasField("http"):
        shown.http.url = redacted_url(shown.http.url, settings)
        for header in shown.http.headers:
            if not header_stays(header.key, settings):
                header.value = REDACTED
    if shown.HasField("kafka") and settings.kafka_api_key and shown.kafka.api_key:
        shown.kafka.api_key = REDACTED
    return shown


def redacted_url(url: str, settings: RedactSettings) -> str:
    """A URL without what must not be told."""
    match = URL.fullmatch(url)
    assert match is not None, "the pattern takes any text"
    scheme, slashes, authority, path, rest = match.groups(default="")
    if settings.http_user_info:
        authority = _without_password(authority)
    if settings.http_url_query:
        rest = ""
    return scheme + slashes + authority + path + rest


def header_stays(name: str, settings: RedactSettings) -> bool:
    """Whether the value of a header may be told; case does not matter in its name."""
    known = name.lower()
    if settings.http_headers_deny:
        return known not in {each.lower() for each in settings.http_headers_deny}
    return known in {each.lower() for each in settings.http_headers_allow}


def _without_password(authority: str) -> str:
    user_info, at, host = authority.rpartition("@")
    user, colon, _ = user_info.partition(":")
    return f"{user}:{REDACTED}@{host}" if at and colon else authority
