"""The long memory: flows that the ring had to give up, in sealed files on disk.

    store ─► cursor ─► recorder ─ a block of rows ─► thread: codec ─► flows-….parquet   (shelf: names, budget)
                                                                            │
    observer ◄─ rows and what they point into ◄─ thread: codec ◄─ archive ◄─┘

Belongs here: writing files (`recorder`, `codec`, `friendly`), knowing them (`shelf`, `age`), answering from
them (`archive`); `keeper` holds all of that, by `settings`, and tells `numbers`. Must not be here: filters
and messages, which are the store's own and do not notice whether rows come from the ring or from a file.
Talks to: `store` and `cursor`; the observer knows it as `past.Past`.

pyarrow is imported by `codec` and `friendly` alone, and only when history is on: it is the extra `history`.
Files are written beside their place, synced and renamed, so what has its name is whole. Nothing is buffered:
rows that are not sealed yet are in the ring, where the observer finds them.
"""
