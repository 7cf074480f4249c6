"""The readers: each kind of policy object into rules, and what they refuse.

Belongs here: one reader per kind (`kubernetes`, `cilium`, `administrator`), what they share (`reading`), the
checks of what is refused for now (`layer7`), and `parse`, which knows which reader reads what.
Does not: who a selector means, which needs the cluster; precedence.
Talks to: `rules` and `ports` only.
"""
