"""Chores that the cluster needs done once, by whichever operator leads.

    lease ──► leader ──► crds (install, then) ─┬─► nodes     CiliumNodes ──► pod prefixes, errors
                                               ├─► endpoints CiliumEndpoints without pod or node ──► deleted
                                               └─► identities unused CiliumIdentities ──► marked, then deleted

Belongs here: each chore as a pure decision and the few lines that carry it out; leader election; health and
metrics of the process.
Does not belong here: the allocator (`control.ipam`), following collections (`sources.reflector`), anything a
node can do for itself.
Talks to: the store of `cluster` only. Whatever it decides can be decided again by the next leader: all memory
is in the objects.
"""
