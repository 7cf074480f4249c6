"""The agent's doors: request and answer types, servers, and the client of the REST API.

    cilia (CLI) -- http over unix socket --> server.ApiServer --.
    kubelet, Prometheus -- http over TCP --> server.ApiServer --+--> Backend (what the agent implements)
    cilia-cni ---- frames over unix socket -> cni_server --------'

- `types`: what goes over the REST socket, in the names Cilia's users know from Cilium's agent API.
- `backend`: the protocol behind the doors, and the errors it may answer with.
- `views`, `service_views`: pure functions from table rows to those types; `table_backend` answers from the
  tables.
- `server`, `cni_server` (on `sockets`): the listeners; peers are checked, inputs bounded, every error is one
  sentence.
- `client`: small and blocking, for the CLI.

Must not: decide anything about the network, or touch the kernel.
"""
