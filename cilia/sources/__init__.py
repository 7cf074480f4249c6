"""Cluster objects into input tables.

    store ──list, watch──► reflector ──► translator of the kind ──► input table

Belongs here: keeping a table equal to a collection of the store (`reflector`), one translator per kind, from
the typed object to a row (`pods`, `namespaces`, `policies`, `nodes`, `endpoints`, `identities`,
`cidr_groups`, `services`, `redirects`), and the list of them (`cluster`).
Does not belong here: decisions. A policy goes into its row as written; what it means is `control`'s.
Talks to: the store of `cluster`; the input tables of `schema`, whose writer it is. The API server may be away
for any time: the tables then keep what was last known.
"""
