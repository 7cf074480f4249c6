"""One module per kernel map that carries a desired table.

Each target has the same five names: `desired()` (rows to keys and values), `update()`, `delete()`,
`prune()` and `ours()` (what the kernel holds). All are idempotent; a pinned map belongs to this node's
agent alone, so everything found in it is ours. How the targets are ordered is `cilia.dataplane.order`'s.
Also here: what is only read or swept (conntrack, snat, counters). Not here: any decision.
"""
