"""The hands: carries desired tables to the kernel and brings its events back.

Belongs here: bpf(2), libbpf, netlink, sysctls, the event rings; one reconciler per map. Does not: any
decision about what should be (that is `control`), any meaning of an event (that is `hubble`). It reads
the desired tables of `schema` and nobody else's calls; events leave as numpy batches. The only room that
opens bpf(2) and netlink.

    Desired tables ──► order ──► maps.* ──► bpf ──► kernel maps        ringbuf, records ──► batches of events
                         │                            ▲                   ▲
                         └─────► links ──► netlink    loader (programs, pins, attach)

Beside that line: `sweeps` forgets what flows left behind, `verify` compares all of it with what was desired.
`sockets` hangs Services onto control groups and ends sockets whose backend is gone, `xdp` onto drivers.
"""
