"""Flows into files, as lines of JSON.

    store ─► cursor ─► filters ─► fragments ─► text of each distinct one ─► lines ─► rotated file
                          │       (convert)    (texts, messages)      (lines, whole)  (files)
                          └─► groups, counted over an interval (groups)

Belongs here: what an exporter is told (`settings`), its fields (`field_trees`), its lines (`texts`,
`messages`, `lines`, `whole`, `groups`), the files it writes (`files`), its life (`exporter`), the set of all
of them, which follows a file of settings (`exporters`), and their metrics (`collector`).

Must not be here: reading flags (that is the agent's), answering clients (that is `observer`), hiding what
must not leave (that is `redact`, before a record is stored). Talks to: `store` and `cursor` for flows,
`convert` for their meaning, `filters` for the choice, `kit` for tasks, threads and clocks.

Each exporter has a cursor and a file of its own and goes at its own pace. Lines are made on the event loop,
in small steps; files are written in threads, for a disk may block. An exporter whose file can't be written
waits with one batch in hand; what the ring overwrites meanwhile is told in the file, with its number and
times.
"""
