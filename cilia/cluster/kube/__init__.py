"""A client for Kubernetes API servers, as small as Cilia's needs: the store protocol over HTTP.

Belongs here: finding the server and credentials (`kubeconfig`, `credentials`), TLS (`tls`), requests and
watches (`client`).
Does not belong here: caching, retry loops around watches (that is `sources.reflector`), any kind's meaning.
Talks to: API servers over HTTPS; `wire.watch_stream` for framing.
"""
