"""Many observers in, one time-ordered stream out.

    peer service ─► peers ─► pool (a connection to each, kept up) ─┐
                                                                   ├─► answer ─► merge ─► rpc ─► clients
    client's request, what its viewer may see (access, view) ──────┘    (bytes, a lane each)

Belongs here: finding peers, connections to them, whose turn it is (`turns`), merging by time, what a viewer
may see, what is counted (`numbers`) and logged (`tally`) of all that, and memory that is given back (`tidy`).
Must not be here: anything of a flow's making or storing (that is `hubble`), flags (that is the application).
Talks to: `hubble` for the gRPC it speaks, `cluster` for token and access reviews, `proto` for messages,
`kit`.

A flow passes as bytes: of it are read the kind and the time, by a scan of its top level. It is parsed only
for a viewer that may not see everything; else protobuf just says whether a client will be able to.
"""
