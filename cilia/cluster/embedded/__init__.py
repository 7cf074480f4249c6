"""The embedded API server: the part of the Kubernetes API that Cilia and ``kubectl`` need, on SQLite.

What belongs here: one process's worth of API server, from the HTTP request to the committed row.

    credentials ──► auth ─┐
                          ▼
    http ──► requests ──► handlers ──► engine ──► storage (SQLite, group commit)
      ▲          (pure)      │            │
      │                      │            └──► watch (fan-out of committed events)
      │                      ├── registry, builtins (columns, rules), crds    which kinds there are
      │                      ├── meta, schema, patch, strategic, protobuf     what a change means  (pure)
      │                      ├── selectors, jsonpath, printing                what is shown        (pure)
      │                      ├── services                      what Services are given: addresses and ports
      │                      └── discovery                                    what there is to ask (pure)
      └── server (uvicorn)                 garbage: owners, namespaces, old events

What must not be here: anything that knows what a policy or an endpoint means; those are plain objects.
Whom it talks to: nobody. Clients reach it over HTTPS as they would reach any Kubernetes API server, and no
code outside ``cilia.apps.apiserver`` and the lab (for credentials) imports it.

Two ideas carry the rest. A write is judged against the *head* (committed plus pending writes) and is seen by
readers and watchers only after SQLite has it on disk, in the order of its resourceVersion. And an object is
kept as the bytes that are sent: lists are joined, watch events are encoded once, whoever asks.
"""
