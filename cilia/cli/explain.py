"""How explanations and check reports are printed: trees for people."""

from __future__ import annotations

from collections.abc import Iterable

from cilia.cli.output import console, printable
from cilia.model.explain import (
    Change,
    CheckReport,
    Difference,
    End,
    Expansion,
    Explanation,
    Remedy,
    RuleStory,
    Side,
    Then,
)

COLOURS = {
    "allow": "bold green",
    "forwarded": "bold green",
    "deny": "bold red",
    "denied": "bold red",
    "audit": "bold yellow",
    "pass": "cyan",
    "isolate": "magenta",
}
SHOWN_LABELS = 8
SHOWN_ALIKE = 6
"""Flows, or pairs, that the same rules decide."""
NOISE = ("k8s:io.cilium.", "k8s:io.kubernetes.pod.namespace=")
"""Labels that say little beside a pod's name."""


class Paper:
    """Lines with indentation and colour; long ones go on below their beginning."""

    def __init__(self) -> None:
        self._out = console()

    def line(self, depth: int, *parts: str | tuple[str, str], mark: str = "") -> None:
        """Print parts, each a text or a text with its style."""
        from rich.padding import Padding
        from rich.text import Text

        safe = [printable(p) if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts]
        text = Text.assemble((f"{mark} " if mark else "", "dim"), *safe)
        self._out.print(Padding(text, (0, 0, 0, 2 * depth), expand=False))

    def block(self, depth: int, text: str, style: str = "dim") -> None:
        """Print text as it is: YAML keeps its columns."""
        for row in text.rstrip("\n").split("\n") if text.strip() else ():
            self._out.print(" " * (2 * depth) + printable(row), style=style, soft_wrap=True, markup=False)

    def gap(self) -> None:
        """Print an empty line."""
        self._out.print()


def print_explanation(told: Explanation, *, verbose: bool = False) -> None:
    """The whole answer."""
    paper = Paper()
    port = f" {told.port}" if told.port else ""
    paper.line(
        0,
        (told.verdict.upper(), COLOURS.get(told.verdict, "")),
        f"  {told.source.name} → {told.destination.name}  {told.protocol}{port}",
        (f"  policy revision {told.revision}", "dim"),
    )
    for word, end in (("from", told.source), ("to", told.destination)):
        _print_end(paper, word, end)
    if told.then is not None:
        paper.gap()
        _print_then(paper, told.then)
    for side in told.sides:
        paper.gap()
        _print_side(paper, side, verbose)
    for note in told.notes:
        paper.gap()
        paper.line(0, (f"Note: {note}", "dim"))


def _print_end(paper: Paper, word: str, end: End) -> None:
    at = f" at {end.address}" if end.address and end.address != end.name else ""
    node = f" on node {end.node}" if end.node else ""
    paper.line(1, (f"{word:<5}", "dim"), (end.name, "bold"), f"{at}{node}, identity {end.identity}")
    depth = 4
    paper.line(depth, ("labels ", "dim"), ", ".join(_short(end.labels)) or "none")
    if end.named_ports:
        paper.line(depth, ("ports ", "dim"), ", ".join(end.named_ports))
    paper.line(depth, ("known from ", "dim"), end.origin)
    if end.audit:
        paper.line(depth, ("in audit: what is denied passes and is noted", "yellow"))


def _print_then(paper: Paper, then: Then) -> None:
    paper.line(
        0,
        ("When it happened", "bold"),
        f" ({then.time}): ",
        (then.verdict.upper(), COLOURS.get(then.verdict, "")),
        f" {then.reason}" if then.reason else "",
        f"  {then.summary}" if then.summary else "",
        (f"  policy revision {then.revision}" if then.revision else "", "dim"),
    )
    for word, rules in (("egress", then.egress), ("ingress", then.ingress)):
        for rule in rules:
            paper.line(1, (f"{word} decided by ", "dim"), rule)
    paper.line(0, ("Now", "bold"))


def _print_side(paper: Paper, side: Side, verbose: bool) -> None:
    paper.line(
        0,
        (f"{side.direction} of {side.subject}: ", "bold"),
        (side.verdict.upper(), COLOURS.get(side.verdict, "")),
    )
    paper.line(1, side.reason)
    for story in side.deciding:
        _print_story(paper, 1, story, "●", full=True)
    if side.losers:
        paper.line(1, ("Also about this packet, but overruled:", "bold"))
        for story in side.losers:
            _print_story(paper, 2, story, "○", full=verbose)
    if side.misses:
        paper.line(1, ("Rules that would allow, but are not about this packet:", "bold"))
        for story in side.misses:
            _print_story(paper, 2, story, "○", full=verbose)
        if side.misses_left_out:
            paper.line(2, (f"and {side.misses_left_out} more", "dim"))
    if side.remedy is not None:
        _print_remedy(paper, side.remedy)


def _print_story(paper: Paper, depth: int, story: RuleStory, mark: str, *, full: bool) -> None:
    version = f"@{story.resource_version}" if story.resource_version else ""
    tier = f" tier {story.tier}" if story.tier not in ("", "normal") else ""
    paper.line(
        depth,
        (f"{story.kind} {story.policy}{version} ", ""),
        (story.path, "bold"),
        ("  ", ""),
        (story.action, COLOURS.get(story.action, "")),
        (tier, "cyan"),
        ("  in audit" if story.audit else "", "yellow"),
        mark=mark,
    )
    if story.why:
        paper.line(depth + 1, ("because ", "dim"), story.why)
    if story.peer is not None and full:
        _print_expansion(paper, depth + 1, story.peer)
    if full:
        paper.block(depth + 2, story.yaml)


def _print_expansion(paper: Paper, depth: int, found: Expansion) -> None:
    count = f"{found.count} identit{'y' if found.count == 1 else 'ies'}"
    paper.line(depth, ("peers ", "dim"), f"{found.selector}: {count}")
    for member in found.members:
        who = ", ".join(member.pods) or ", ".join(_short(member.labels))
        paper.line(depth + 1, (f"{member.identity} ", "dim"), who)
    if found.count > len(found.members) > 0:
        paper.line(depth + 1, (f"and {found.count - len(found.members)} more", "dim"))


def _print_remedy(paper: Paper, remedy: Remedy) -> None:
    tried = "tried: it would pass this side" if remedy.verified else "tried: it would still not pass"
    paper.line(1, ("To allow it", "bold green"), (f" ({tried})", "dim"))
    for change in remedy.changes:
        _print_change(paper, change)


def _print_change(paper: Paper, change: Change) -> None:
    paper.line(2, change.sentence)
    paper.block(3, change.yaml, "green")


def _short(labels: Iterable[str]) -> list[str]:
    """Labels that tell something, and how many more there are."""
    telling = [label for label in labels if not label.startswith(NOISE)]
    found = telling[:SHOWN_LABELS]
    return [*found, *([f"{len(telling) - SHOWN_LABELS} more"] if len(telling) > SHOWN_LABELS else [])]


# -- check ---------------------------------------------------------------------------------------------


def print_report(report: CheckReport, *, verbose: bool = False) -> None:
    """What a proposal would change."""
    paper = Paper()
    if report.problems:
        paper.line(0, ("Not valid, nothing was compared:", "bold red"))
        for problem in report.problems:
            paper.line(1, (f"{problem.document} ", "bold"), (f"{problem.path} ", "cyan"), problem.sentence)
        return
    for word, names in (("add", report.added), ("replace", report.replaced), ("remove", report.removed)):
        for name in names:
            paper.line(0, (f"would {word} ", "dim"), name)
    paper.line(
        0,
        (
            f"compared with {report.flows_seen} distinct flows of the last {report.since:g} s, "
            f"and pairs of live workloads: for {report.pairs_judged} some side would say something else",
            "dim",
        ),
    )
    _print_differences(paper, "Flows that were seen", report.flows, verbose=verbose)
    _print_differences(paper, "Pairs of live workloads", report.pairs, verbose=verbose)
    for note in report.notes:
        paper.line(0, (f"Note: {note}", "yellow"))
    denied = sum(row.newly_denied for row in report.differences)
    allowed = sum(row.newly_allowed for row in report.differences)
    others = len(report.differences) - denied - allowed
    paper.line(
        0,
        ("Newly denied: ", ""),
        (str(denied), "bold red" if denied else "green"),
        ", newly allowed: ",
        (str(allowed), "bold yellow" if allowed else "green"),
        f", only audit differs: {others}" if others else "",
    )


def _print_differences(paper: Paper, title: str, rows: Iterable[Difference], *, verbose: bool) -> None:
    """Those that the same rules decide together, the rules once."""
    alike: dict[tuple[object, ...], list[Difference]] = {}
    for row in rows:
        key = (row.before, row.after, row.direction, row.before_rules, row.after_rules)
        alike.setdefault(key, []).append(row)
    if not alike:
        return
    paper.gap()
    paper.line(0, (title, "bold"))
    for found in alike.values():
        first = found[0]
        paper.line(
            1,
            (first.before, COLOURS.get(first.before, "")),
            " → ",
            (first.after, COLOURS.get(first.after, "")),
            f"  by {first.direction}",
        )
        paper.line(2, ("now  ", "dim"), "; ".join(first.before_rules))
        paper.line(2, ("then ", "dim"), "; ".join(first.after_rules))
        shown = found if verbose else found[:SHOWN_ALIKE]
        for row in shown:
            _print_ends(paper, row)
        if len(shown) < len(found):
            paper.line(3, (f"and {len(found) - len(shown)} more: -v lists all", "dim"))


def _print_ends(paper: Paper, row: Difference) -> None:
    counted = f"  {row.flows} seen, last {row.last_seen}" if row.flows else ""
    others = f"  and {row.others} more pairs alike" if row.others else ""
    port = f" {row.port}" if row.port and row.port != row.protocol else ""
    paper.line(
        3, f"{row.source} → {row.destination}  {row.protocol}{port}", (counted + others, "dim"), mark="·"
    )
