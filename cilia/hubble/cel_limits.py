"""How much an expression may ask: what would hold up the agent is refused before it is evaluated.

An evaluation can't be interrupted, so its cost is bounded by its text: loops multiply, lists grow, and the
library compiles a regular expression each time it meets one, where a class such as `\\w` costs 0.3 ms each.
"""

from __future__ import annotations

import re

from cilia.hubble.filter_values import FilterError

MAX_LENGTH = 2000
"""Characters of an expression."""
MAX_LOOPS = 2
"""all, exists, exists_one, map and filter: each may multiply the work."""
MAX_NESTED_LENGTH = 500
"""Characters of an expression with two loops: all of it may be evaluated for each pair of labels."""
MAX_LISTED = 48
"""Commas and plus signs of an expression with loops: no list is longer, or added up to a longer one."""
MAX_WEIGHT, MAX_LOOPED_WEIGHT = 300, 100
"""Of regular expressions, without loops and with; a unit is some 10 µs."""

TEXTS = re.compile(
    r"""(?:[bB]?[rR](?:"{3}.*?"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')"""
    r"""|[bB]?(?:"{3}(?:\\.|[^\\])*?"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))""",
    re.DOTALL,
)
SKIPPED = re.compile(rf"(?P<comment>//[^\n]*)|(?P<text>{TEXTS.pattern})", re.DOTALL)
LOOP = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")
MATCHES = re.compile(r"\bmatches\s*\(")
PLAIN_MATCHES = re.compile(r'\.\s*matches\s*\(\s*""\s*\)')
HEAVY, DEAR = re.compile(r"\\[wWpP]"), re.compile(r"\\[dDsS]|\[\^|\.")
REPEATED = re.compile(r"\{([^}]*)\}?")
NUMBERED = re.compile(r"\\[xXuU0-7]")


def code_of(text: str) -> str:
    """An expression without comments, with empty texts. Raises FilterError where texts can't be told."""
    code = SKIPPED.sub(lambda found: " " if found["comment"] else '""', text)
    if re.search(r"""['"`]""", code.replace('""', "")):
        raise FilterError(f"the CEL expression {text!r} is wrong: a text in it has no end")
    return code


def check(text: str, code: str) -> None:
    """Raise FilterError for an expression that may take too long; `code` as `code_of` gives it."""
    if len(text) > MAX_LENGTH:
        raise FilterError(f"a CEL expression has more than {MAX_LENGTH} characters: use several")
    loops = len(LOOP.findall(code))
    if loops > MAX_LOOPS:
        raise FilterError(
            f"a CEL expression has more than {MAX_LOOPS} loops (all, exists, map, ...): use several"
        )
    if loops == MAX_LOOPS and len(text) > MAX_NESTED_LENGTH:
        raise FilterError(
            f"a CEL expression with {MAX_LOOPS} loops has more than {MAX_NESTED_LENGTH} characters: "
            "use several"
        )
    if loops and code.count(",") + code.count("+") > MAX_LISTED:
        raise FilterError(
            f"a CEL expression with a loop has more than {MAX_LISTED} commas and plus signs: use several"
        )
    if MATCHES.search(code):
        check_patterns(text, code, MAX_LOOPED_WEIGHT if loops else MAX_WEIGHT)


def check_patterns(text: str, code: str, limit: int) -> None:
    """Raise FilterError for regular expressions that take long to compile, or that can't be weighed."""
    if len(MATCHES.findall(code)) != len(PLAIN_MATCHES.findall(code)):
        raise FilterError("matches() takes one text in a CEL expression: write the regular expression out")
    texts = TEXTS.findall(text)
    if any(NUMBERED.search(each) for each in texts):
        raise FilterError("a CEL expression with matches() has characters by number: write them as they are")
    if sum(map(weight, texts)) > limit:
        raise FilterError(
            r"the regular expressions of a CEL expression cost too much: repeat less, write [a-z0-9] for \w"
        )


def weight(pattern: str) -> float:
    """What compiling a regular expression costs: characters and classes, times repetitions."""
    repeated = 1
    for inside in REPEATED.findall(pattern):
        repeated *= max((int(number) for number in re.findall(r"[0-9]{1,9}", inside)), default=1) or 1
    return (len(pattern) / 10 + 30 * len(HEAVY.findall(pattern)) + 3 * len(DEAR.findall(pattern))) * repeated
