"""Label and field selectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.cluster.embedded.errors import ApiError
from cilia.cluster.embedded.selectors import parse_fields, parse_labels

FIELDS = frozenset({"metadata.name", "spec.nodeName", "status.phase"})


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("app=web", {"app": "web"}, True),
        ("app==web", {"app": "db"}, False),
        ("app!=web", {}, True),
        ("app", {"app": ""}, True),
        ("!app", {"app": ""}, False),
        ("app=", {"app": ""}, True),
        ("app in (web, db),tier notin (x)", {"app": "db"}, True),
        ("app in (web)", {}, False),
        ("app notin (web)", {"app": "web"}, False),
        ("k8s.io/name=a_b.c-d", {"k8s.io/name": "a_b.c-d"}, True),
        ("n>3", {"n": "4"}, True),
        ("n<3", {"n": "x"}, False),
        ("in in (in)", {"in": "in"}, True),
    ],
)
def test_label_selectors(text: str, labels: dict[str, str], expected: bool) -> None:
    assert parse_labels(text).matches(labels) is expected


@pytest.mark.parametrize(
    "text", ["a=b,", ",", "a in", "a in (b", "a in b", "=b", "a=b c", "a~b", "-a", "n>x", "!"]
)
def test_malformed_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(ApiError, match="label selector"):
        parse_labels(text)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_labels, lambda value: parse_fields(value, FIELDS)):
        try:
            parse(text)
        except ApiError as error:
            assert error.code == 400


def test_field_selectors() -> None:
    chosen = parse_fields("spec.nodeName=n1,status.phase!=Failed", FIELDS)
    assert chosen.matches({"spec.nodeName": "n1", "status.phase": "Running"})
    assert not chosen.matches({"spec.nodeName": "n1", "status.phase": "Failed"})
    assert not chosen.matches({})
    assert parse_fields("metadata.name=x", FIELDS).exact("metadata.name") == "x"


def test_unknown_fields_are_refused_by_name() -> None:
    with pytest.raises(ApiError, match=r"field label not supported: spec\.other"):
        parse_fields("spec.other=1", FIELDS)
