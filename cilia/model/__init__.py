"""The nouns, frozen: labels, identities, endpoints, nodes, policies, addresses.

Belongs here: immutable row and value types and the rules that are part of their meaning (how labels
match, which identity numbers are reserved). Does not: decisions, clocks, I/O, wire formats.
`model.resources` holds the Kubernetes objects as their users write them.
"""
