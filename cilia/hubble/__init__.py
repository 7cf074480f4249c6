"""The eyes: event bytes in, answers out.

    kernel rings                                                             clients
    (dataplane)      store.append()                 observer                 observe, relay, UI
        |                 |                             |                          ^
        v                 v                             v                          |
    event batches -> columnar ring -> filters -> convert -> rpc.server --- gRPC ---+
    + losses         (store)          (masks     (protobuf
                         |             over       from cached
                     intern,           columns)   fragments)
                     directory

Belongs here: the flow store and what gives its numbers names (`directory`, `intern`), filters and masks,
conversion to Hubble's messages, the observer, peer, health and agent-event services, the little gRPC they
speak (`rpc`) and a client of it; and who reads flows as they come, by a `cursor` each: the long memory
(`history`), files (`export`), metrics (`metrics`), drops told to pods' owners (`drop_events`). `frames` makes
columns of any server's answers. `redact` stands ready for application records, which nothing makes
yet: whoever does hands them through it before they are stored.

    kept      store: ring, columns, intern, directory, uuids
    chosen    filters: predicates, questions, filter_values, selectors, cel, cel_limits
    made      convert, blocks: meaning, pairs, layer4, protocols, icmp, summary,
              cuts, masks, encode, remembered
    answered  observer, answer: turns, beside, request_limits, verdicts, past, cursor
    besides   agent_events, peer, health, status, drop_events, client

Must not be here: reading the kernel's rings (that is `dataplane`; a batch is an argument of `append`),
deciding anything (that is `control`), printing (that is `cli`). Talks to: `model` for rule references,
`proto` for messages, `kit` for clocks, tasks, threads, files and TLS; the agent's application hands in the
batches and a `Directory` made from its tables.

One rule runs through all modules: work per distinct value, not per flow. Names are looked up once per
distinct peer, filters on names are evaluated once per distinct peer, and a peer's protobuf bytes are made
once. A flow stays a row of numbers until a client asks for it.

The store and all that reads its rows run on the event loop's thread: rows are views into the ring and hold
until the next `append`. Only files are written and read in threads, from copies.
"""
