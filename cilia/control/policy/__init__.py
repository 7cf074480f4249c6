"""The policy engine: policies and identities in, one set of kernel entries per subject out.

Belongs here: reading policy objects into rules (`parse`, `parse_kubernetes`, `parse_cilium` -> `rules`),
which identities a selector means (`selection`), rules into entries (`resolve`), names for sets of rules
(`cookies`), the kernel's decision in Python (`decide`), the slow evaluator that checks all of it (`oracle`)
and the node of the control graph that keeps it current (`node`).
Does not: clocks, I/O, the API server, the kernel's maps.
Talks to: the tables of `schema` only; `control.identity` shares its `RuleBook`.

    policies ──► parse ──► sections ─┬─► which subjects ──► groups ─┐
                                     │                              ├─► entries ──► subjects, cookies
    identities ──► index ────────────┴─► peers of each rule ────────┘
"""
