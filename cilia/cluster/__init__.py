"""The shared truth of the cluster behind one protocol (`store`).

Belongs here: the protocol; its client for any Kubernetes API server (`kube`); its reading of a directory of
YAML files (`directory`); the embedded API server (`embedded`).
Does not belong here: what objects mean. Callers decode them with `cilia.model.resources`.
Talks to: API servers, files. `sources` and `operator` call it; nobody asks which implementation they got.
"""
