"""Whom rules mean: references followed, identities by label, address and port name, kept current.

Belongs here: references into selectors and prefixes (`expand`), identities by label and prefix (`selection`,
`spans`), by the addresses of their endpoints (`addresses`), by the names they give ports (`naming`), all of
these as one (`everybody`); whom a section is for (`applying`); what hardly means what it says (`review`,
`states`).
Does not: verdicts.
Talks to: `dialects`, `rules`, `ports`, and the tables of `schema`.
"""
