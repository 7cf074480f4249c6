"""What must not be told goes, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.hubble.redact import REDACTED, RedactSettings, redacted, redacted_url
from cilia.proto.flow import flow_pb2

ON = RedactSettings(enabled=True)


def http(url: str = "", **headers: str) -> flow_pb2.Layer7:
    pairs = [flow_pb2.HTTPHeader(key=key.replace("_", "-"), value=value) for key, value in headers.items()]
    return flow_pb2.Layer7(
        type=flow_pb2.REQUEST, http=flow_pb2.HTTP(method="GET", url=url, protocol="HTTP/1.1", headers=pairs)
    )


def headers(record: flow_pb2.Layer7) -> dict[str, str]:
    return {header.key: header.value for header in record.http.headers}


def test_switched_off_everything_stays() -> None:
    record = http("http://me:secret@web/?token=1", Authorization="Bearer x")
    assert redacted(record, RedactSettings(http_url_query=True, http_headers_deny=("x",))) == record


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@web:80/path?q=1#there", f"http://me:{REDACTED}@web:80/path?q=1#there"),
        ("http://me@web/", "http://me@web/"),
        ("http://a@b:secret@web/", f"http://a@b:{REDACTED}@web/"),
        ("//me:secret@web", f"//me:{REDACTED}@web"),
        ("/path/me:you@there", "/path/me:you@there"),
        ("http://:@web", f"http://:{REDACTED}@web"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("http://[me:you@", f"http://[me:{REDACTED}@"),
        ("", ""),
    ],
)
def test_passwords_in_urls_go(url: str, shown: str) -> None:
    record = http(url)
    assert redacted(record, ON).http.url == shown
    assert record.http.url == url
    assert redacted(record, RedactSettings(enabled=True, http_user_info=False)).http.url == url


@pytest.mark.parametrize("rest", ["?token=1", "#token", "?a=b#c", "?line\nbreak", "?"])
def test_queries_and_fragments_go_when_told(rest: str) -> None:
    settings = RedactSettings(enabled=True, http_url_query=True)
    assert redacted(http("http://web/x" + rest), settings).http.url == "http://web/x"
    assert redacted(http("http://web/x" + rest), ON).http.url == "http://web/x" + rest


@given(st.text(), st.text(alphabet="abc%:", min_size=1), st.text())
def test_no_password_is_left_in_any_url(before: str, password: str, after: str) -> None:
    url = f"http://user{before.translate({ord(c): None for c in '/?#@:'})}:{password}\u0007@{after}"
    assert f"{password}\u0007" not in redacted_url(url, ON)


@given(st.text())
def test_a_url_without_anything_to_hide_stays(url: str) -> None:
    assert redacted_url(url, RedactSettings(enabled=True, http_user_info=False)) == url


def test_headers_go_unless_they_are_allowed() -> None:
    record = http("", Authorization="Bearer x", User_Agent="curl")
    assert headers(redacted(record, ON)) == {"Authorization": REDACTED, "User-Agent": REDACTED}
    allow = RedactSettings(enabled=True, http_headers_allow=("user-agent",))
    assert headers(redacted(record, allow)) == {"Authorization": REDACTED, "User-Agent": "curl"}
    deny = RedactSettings(enabled=True, http_headers_deny=("AUTHORIZATION",))
    assert headers(redacted(record, deny)) == {"Authorization": REDACTED, "User-Agent": "curl"}
    with pytest.raises(ValueError, match="one of the two lists"):
        RedactSettings(http_headers_allow=("a",), http_headers_deny=("b",))


def test_keys_of_kafka_go_when_told() -> None:
    record = flow_pb2.Layer7(kafka=flow_pb2.Kafka(api_key="fetch", topic="orders"))
    assert redacted(record, ON) == record
    shown = redacted(record, RedactSettings(enabled=True, kafka_api_key=True))
    assert (shown.kafka.api_key, shown.kafka.topic) == (REDACTED, "orders")


def test_names_that_were_asked_for_stay() -> None:
    record = flow_pb2.Layer7(dns=flow_pb2.DNS(query="www.example.com.", ips=["192.0.2.80"]))
    assert redacted(record, RedactSettings(enabled=True, http_url_query=True, kafka_api_key=True)) == record
