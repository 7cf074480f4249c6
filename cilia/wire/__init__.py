"""Sans-I/O codecs: bytes in, typed messages out, and back.

Belongs here: the formats Cilia speaks on wires, pipes and sockets, as pure functions and small machines
that are fed bytes. Does not: sockets, files, clocks, decisions. A peer's fault is one exception type per
format, raised with a sentence; the room that owns the connection translates it.
"""
