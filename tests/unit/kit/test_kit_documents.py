"""How large a document is once its aliases are written out."""

from __future__ import annotations

from cilia.kit.documents import cut, is_larger


def test_what_is_referred_to_twice_counts_twice() -> None:
    words = ["a", "b", "c"]
    assert not is_larger([words, words], 9)
    assert is_larger([words, words], 8)


def test_names_and_values_of_a_mapping_count() -> None:
    assert is_larger({"a": 1, "b": 2}, 4) and not is_larger({"a": 1, "b": 2}, 5)


def test_nine_levels_of_ten_are_refused_without_a_walk_over_all() -> None:
    level: list[object] = ["word"] * 10
    for _ in range(8):
        level = [level] * 10
    assert is_larger(level)


def test_what_holds_itself_is_too_large() -> None:
    own: list[object] = []
    own.append(own)
    own.append(own)
    assert is_larger(own)


def test_a_long_text_is_cut() -> None:
    assert cut("short") == "short"
    assert cut("x" * 100, 10) == "x" * 10 + "..."
