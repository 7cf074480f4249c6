"""In-memory versioned tables and the reconciler that carries a desired table to its target.

Belongs here: tables, indexes, change cursors, the reconciler's bookkeeping. Does not: any row type
(those are nouns of `model`), any kernel or network access. Pure: no clock, no I/O.
"""
