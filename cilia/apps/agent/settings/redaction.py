"""What application records must not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option


@dataclass(frozen=True, kw_only=True)
class RedactionSettings:
    """What application records must not tell."""

    hubble_redact_enabled: Annotated[
        bool, Option(help="Take out of application records what they must not tell, before they are stored.")
    ] = False
    hubble_redact_http_urlquery: Annotated[bool, Option(help="Queries and fragments of URLs.")] = False
    hubble_redact_http_userinfo: Annotated[bool, Option(help="Passwords in URLs.")] = True
    hubble_redact_kafka_apikey: Annotated[bool, Option(help="Keys of Kafka's requests.")] = False
    hubble_redact_http_headers_allow: Annotated[
        str, Option(help="Headers with commas: the values of all others go. With neither list all go.")
    ] = ""
    hubble_redact_http_headers_deny: Annotated[
        str, Option(help="Headers with commas: the values of these go.")
    ] = ""
