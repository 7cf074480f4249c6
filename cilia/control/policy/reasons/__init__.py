"""Why: the verdict straight from the rules, and what people are told of it.

Belongs here: the oracle, slow and obviously right, which tests hold the entries and the kernel to; why a
packet fares as it does (`explain`), the smallest change that would let it pass (`remedy`), what a proposal
would change (`check`), and the wording they share (`words`).
Does not: entries; what is told here comes from the rules.
Talks to: `facts`, `rules`, `meaning.selection`.
"""
