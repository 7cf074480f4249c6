"""The policy engine: policies and identities in, one set of kernel entries per subject out.

    node        the node of the control graph: what is recomputed when
    ---------------------------------------------------------------------------------
    entries     rules and those they mean into entries   |   reasons   the same verdict
                                                         |   from the rules, and why
    ---------------------------------------------------------------------------------
    meaning     whom rules mean, whom sections are for; references followed; warnings
    ---------------------------------------------------------------------------------
    dialects    each kind of policy object into rules; what is refused
    ---------------------------------------------------------------------------------
    rules       the language all kinds are read into · ports · facts

    policies, groups, ──► rules ──► sections ─┬─► which subjects ──► groups ─┐
    services                                  │                              ├─► entries ──► subjects, cookies
    identities ──► index ─────────────────────┴─► peers of each rule ────────┘

Imports point down; `entries` and `reasons` never meet, so that one can check the other.
Does not belong here: clocks, I/O, the API server, the kernel's maps.
Talks to: the tables of `schema` only; `control.identity` shares its `RuleNode`.
"""
