"""Documents of settings: read, or refused in one line, whatever they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.kit.documents import DocumentError, cut, read_yaml

MERGED = "\n".join(
    ["- &a0 {k: v}", *(f"- &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
)
"""Nine by nine by nine: 31 billion pairs before they become one."""


def test_documents_are_read() -> None:
    assert read_yaml("a: [1, &x yes, *x]") == {"a": [1, True, True]}
    assert read_yaml(b"") is None
    assert read_yaml("- {<<: {a: 1}, b: 2}") == [{"a": 1, "b": 2}]


def test_values_count_as_often_as_they_are_referred_to() -> None:
    text = "- &words [one, two, three]\n- *words"
    assert read_yaml(text, 9) == [["one", "two", "three"]] * 2
    with pytest.raises(DocumentError, match="more than 8 values"):
        read_yaml(text, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested deeper than 200"),
        ("{a: " * 100_000, "nested deeper than 200"),
        ("- " * 100_000, "nested deeper than 200"),
        ("? " * 100_000, "nested deeper than 200"),
        ("\n".join(" " * n + "-" for n in range(1000)), "nested deeper than 200"),
        (MERGED, "more than 100000 values"),
        ("[" + "x, " * 200_000 + "]", "more than 100000 values"),
        ("&a [*a]", "stands for what it is in"),
        ("&a {<<: *a}", "stands for what it is in"),
        ("!!bool x", "not YAML"),
        ("!!timestamp x", "not YAML"),
        ("!!int x", "not YAML"),
        ("!!float ''", "not YAML"),
        ("!!binary é", "not YAML"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
        ("2026-99-99", "not YAML"),
        ("9" * 10_000, "not YAML"),
        ("? [a]\n: b", "not YAML"),
        ("--- a\n--- b", "not YAML"),
        ("\x00", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        ("\ud800", "not YAML"),
    ],
)
def test_what_is_no_document_is_said_in_one_line(text: str | bytes, words: str) -> None:
    with pytest.raises(DocumentError, match=words) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="[]{}&*!|>-?:,#%@`'\"ab<= \n\t0") | st.binary())
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    try:
        read_yaml(text)
    except DocumentError:
        pass


def test_texts_are_cut() -> None:
    assert cut("short") == "short"
    assert cut("x" * 100) == "x" * 60 + "..."
