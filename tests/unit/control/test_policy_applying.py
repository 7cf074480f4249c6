"""Who is selected by which section equals a scan, whichever of them came first."""

from __future__ import annotations

import random

import msgspec

from cilia.control.policy.meaning.applying import Applying
from cilia.control.policy.rules import Section, Selector, equals
from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.policy import RuleRef

WEB, DB = (Selector.of([equals("k8s", "app", app)]) for app in ("web", "db"))


def section(subject: Selector, *, nodes: bool = False, name: str = "p") -> Section:
    ref = RuleRef("CiliumNetworkPolicy", "red", name, "1", "spec")
    return Section(subject=subject, ref=ref, isolates=(), rules=(), nodes=nodes)


def labels(rng: random.Random) -> Labels:
    host = [Label("reserved", "host")] if rng.random() < 0.3 else []
    return Labels.of([Label("k8s", "app", rng.choice(("web", "db"))), *host])


def test_selection_equals_a_scan() -> None:
    rng = random.Random(3)
    applying = Applying()
    local: dict[IdentityId, Labels] = {}
    serials: list[int] = []
    for _ in range(400):
        what, identity = rng.randrange(4), IdentityId(rng.randrange(300, 306))
        before = {number: applying.of(number) for number in local}
        if what == 0:
            added, touched = applying.add(
                [section(rng.choice((WEB, DB, Selector())), nodes=rng.random() < 0.3)]
            )
            serials += added
        elif what == 1 and serials:
            touched = applying.drop([serials.pop(rng.randrange(len(serials)))])
        elif what == 2:
            local[identity] = labels(rng)
            touched = {identity} if applying.put(identity, local[identity]) else set()
            if identity not in before:
                touched.add(identity)
        else:
            applying.remove(identity)
            local.pop(identity, None)
            touched = {identity}
        for number, found in local.items():
            expected = tuple(n for n in sorted(applying.sections) if applying.sections[n].selects(found))
            assert applying.of(number) == expected
            assert number in touched or before[number] == expected
    assert sorted(serials) == sorted(applying.sections)


def test_sections_alike_are_one_question() -> None:
    applying = Applying()
    applying.put(IdentityId(300), Labels((Label("k8s", "app", "web"),)))
    first, touched = applying.add([section(WEB), section(msgspec.structs.replace(WEB), name="q")])
    assert touched == {300}
    assert applying.of(IdentityId(300)) == first
    assert applying.drop(first[:1]) == {300}
    assert applying.of(IdentityId(300)) == first[1:]
