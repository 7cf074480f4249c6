"""What policy entries and rules did, for people: the kernel's accounts with names and times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Sequence

import msgspec

from cilia.api.types import EndpointPolicy, EntryView, PolicyUsage, RuleUsage
from cilia.api.views import rule_view
from cilia.apps.agent.explain import moment
from cilia.control.graph import ControlGraph
from cilia.control.policy.meaning.expand import PolicyKey
from cilia.control.policy.rules import Section
from cilia.dataplane.maps.accounting import Account, Usage, Usages
from cilia.dataplane.order import KernelState
from cilia.kit.clock import Clock
from cilia.model.ids import Cookie, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import EntryKey, RuleRef


class PolicyAccounts:
    """Reads the accounts of this node."""

    def __init__(self, graph: ControlGraph, kernel: KernelState, clock: Clock) -> None:
        """`clock`: its monotonic time must be CLOCK_MONOTONIC, as the kernel's is."""
        self._graph = graph
        self._kernel = kernel
        self._clock = clock

    async def add_to(self, policy: EndpointPolicy, keys: Iterable[EntryKey]) -> EndpointPolicy:
        """The policy with the numbers of its entries; `keys` of them, in their order."""
        began, usages = await self._read()
        calendar = self._calendar()
        subject = SubjectId(policy.subject)
        entries = tuple(
            _with(view, usages.get(Account(subject, key, Cookie(view.cookie)), Usage()), calendar)
            for key, view in zip(keys, policy.entries, strict=True)
        )
        return msgspec.structs.replace(policy, entries=entries, counted_since=calendar(began))

    async def of_rules(self) -> PolicyUsage:
        """Every rule in force here, the unused ones first."""
        policy = self._graph.policy
        labels = [row.labels for row in self._graph.desired.subjects]
        rules = await asyncio.to_thread(rules_here, policy.facts().sections, set(policy.concerns()), labels)
        cookies = self._graph.desired.cookies
        began, usages = await self._read()
        calendar = self._calendar()
        found = dict.fromkeys(rules, Usage())
        for account, usage in usages.items():
            row = cookies.get(account.cookie)
            for ref in row.rules if row is not None else ():
                if ref in found:
                    found[ref] += usage
        return PolicyUsage(
            counted_since=calendar(began),
            rules=tuple(
                RuleUsage(
                    rule=rule_view(ref),
                    hits=usage.hits,
                    packets=usage.packets,
                    bytes=usage.bytes,
                    last_hit=calendar(usage.last),
                )
                for ref, usage in sorted(found.items(), key=lambda item: (item[1].hits, item[0]))
            ),
        )

    async def _read(self) -> tuple[int, Usages]:
        """When the counters began, in monotonic seconds, and what they say."""
        began = self._kernel.account(int(self._clock.monotonic()))
        return began, await asyncio.to_thread(self._kernel.accounting.usage)

    def _calendar(self) -> Callable[[int], str]:
        """Turns seconds of the monotonic clock into moments of the calendar; one for a whole answer, whose
        moments then keep their order."""
        offset = self._clock.wall() - self._clock.monotonic()
        return lambda seconds: moment(int((offset + seconds) * 1e9)) if seconds else ""


def _with(view: EntryView, usage: Usage, calendar: Callable[[int], str]) -> EntryView:
    return msgspec.structs.replace(
        view,
        hits=usage.hits,
        packets=usage.packets,
        bytes=usage.bytes,
        last_hit=calendar(usage.last),
    )


def rules_here(
    sections: Iterable[Section], concerned: Container[PolicyKey], labels: Sequence[Labels]
) -> list[RuleRef]:
    """The rules of every section that selects one of these subjects; `concerned`: policies that select any.

    To look at all sections would take seconds where there are thousands.
    """
    return [
        rule.ref
        for section in sections
        if any((rule.ref.kind, rule.ref.namespace, rule.ref.name) in concerned for rule in section.rules[:1])
        and any(section.selects(mine) for mine in labels)
        for rule in section.rules
    ]
