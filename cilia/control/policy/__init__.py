"""The policy engine: policies and identities in, one set of kernel entries per subject out.

Belongs here: reading policy objects into rules (`parse*`, `reading`, `layer7` -> `rules`), following what
they refer to (`expand`), which identities a selector, a block or an address means (`selection`, `spans`,
`addresses`), what ports are called (`naming`), and all these at once (`everybody`), whom a section selects
(`applying`), rules into entries (`drafts`, `layers`, `sides`, `resolve`), once for all subjects that the
same sections select (`groups`, `subjects`), names for sets of rules (`cookies`), the node of the control
graph that keeps it current (`node`), what became of each policy (`states`); and, beside that path, the slow
evaluator that checks it (`oracle`, over `facts`), warnings (`review`), and what people are told (`explain`,
`remedy`, `check`, `words`).
Does not: clocks, I/O, the API server, the kernel's maps.
Talks to: the tables of `schema` only; `control.identity` shares its `RuleNode`.

    policies, groups, ──► rules ──► sections ─┬─► which subjects ──► groups ─┐
    services                                  │                              ├─► entries ──► subjects, cookies
    identities ──► index ─────────────────────┴─► peers of each rule ────────┘
"""
