"""Flows as data frames: an answer of any Hubble server as Arrow columns, and SQL over them.

    GetFlows ─► responses ─► wire (all messages at once) ─► decode (each distinct piece once) ─► Frame
                                                                                arrow, pandas, polars, sql

Belongs here: reading protobuf in columns (`wire`, `decode`), the columns' names and types (`schema`), and
what one does with them (`frame`, `sql`). Must not be here: filters from flags (`cli`), and anything about
sealed files (`history`), which have the same columns. Talks to: `client`, any server of Hubble's API.

pyarrow and duckdb are the extra `history`; a sentence says so where they are missing.
"""
