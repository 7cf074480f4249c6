"""Services: who asks for which address and port, and who answers there.

    Services, EndpointSlices ──► frontends ──┐
    pods with host ports ──────► hostports ──┼─► drafts ──► claims ──► service_entries
    redirect policies, pods ───► redirects ──┤     │      who holds a frontend that several ask for
    services by hand ──────────► standalone ─┘     └─────► service_states, health_checks

Belongs here: what the fields and annotations of Kubernetes mean (`written`, `selectors`), which of a
Service's endpoints are candidates (`choice`), and the sentences about what can't be done. Does not: numbers,
ranges and tables of the data path, sockets, the clock. An object's draft depends on that object, its slices
or pods, and where this node stands; only `claims` sees more than one object. Start reading at `node.py`.
"""
