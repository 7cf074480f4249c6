"""Rules and those they mean into what the kernel looks up: one set of entries per subject.

Belongs here: sections as terms with their place in the order (`drafts`), which entry must stand at which
prefix (`layers`), for one direction (`sides`) and for all subjects alike (`resolve`, `groups`); names for
sets of rules (`cookies`) and numbers for subjects (`subjects`).
Does not: reading policies, telling people why.
Talks to: `meaning`, `rules`, `ports`, `facts`.
"""
