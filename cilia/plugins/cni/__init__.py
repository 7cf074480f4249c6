"""The CNI plugin: an executable for the runtime, and what the agent does for it.

    kubelet -> runtime -> cilia-cni (own process, one file) -> agent's CNI socket -> cilia.api.cni_server
                              | agent away, DEL
                              v
                          delete queue (directory) -> replayed by the agent at its start

- `cilia_cni`: the executable; self-contained, copied out by `install`, never imported by others.
- `install`: puts the executable where runtimes look, with its paths written in.
- `conflist`: the network configuration that makes a runtime call us; present while the agent is ready.
- `delete_queue`: the agent's side of the directory of deferred DELs.

Must not: decode a call (that is `cilia.wire.cni`, in the agent) or touch the kernel.
"""
