"""Cilia: connects, secures and observes containers with eBPF in the kernel and Python above it.

The rooms, top floor first (imports point down only; the build checks it):

    apps        one composition root per process
    cli plugins operator lab
    api         the agent's request types, server and client
    control     the brain: input tables -> desired tables, pure
    dataplane   the hands: desired tables -> kernel
    hubble      the eyes: event bytes -> flows -> answers
    sources     cluster objects -> input tables
    schema cluster
    abi wire
    model tables
    kit proto
"""

__version__ = "0.1.0"
