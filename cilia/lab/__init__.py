"""A whole cluster on one machine: nodes as network namespaces, pods as processes.

Belongs here: namespaces, links and cgroups of the lab, the pod sandbox and its init program, the small
scheduler, kubelet and endpoint-slice controller that a cluster without Kubernetes lacks, the prober that
measures who reaches whom, the demo. Does not belong here: anything a node of a real cluster needs; the lab
calls the CNI plugin, the agent's command line and the Kubernetes API as anybody would.
Talks to: `cluster` (the Kubernetes API), `model`, `kit`; to the agent, operator and API server only by
starting their programs.

    up ──► daemon ──► fabric (links) ──► API server, operator, agents (processes)
                  └─► scheduler ─► kubelet per node ─► sandbox ─► CNI plugin ─► agent
                                                          └─► podinit (echo server, prober)

Everything a lab makes lives in its state directory (which holds the mounts that keep its namespaces and its
own bpffs), in cgroups under one name, or inside its namespaces. So `down` needs no memory of what `up` did:
it empties the cgroup, unmounts below the state directory and removes both.
"""
