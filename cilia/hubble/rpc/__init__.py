"""The gRPC that Hubble's clients speak, over h2's HTTP/2 state machine.

Belongs here: message framing, status codes, a server on asyncio with TLS and its bounds (`limits`), the turns
its clients take (`rounds`), a channel for clients, reflection. Must not be here: anything of flows (services
are handed in as a table of methods).
Source: the gRPC over HTTP/2 page of the gRPC repository (doc/PROTOCOL-HTTP2.md). Many messages travel in one
DATA frame, because a frame, not a byte, is what costs.
"""
