"""cilia-agent: owns one node's network.

    settings   what an operator may set
    main       the command line
    runtime    builds the rooms, in the order in which they can stand, and runs them until told to stop
    live       settings that change while the agent runs, and where they are kept
    switches   the same for single endpoints
    kernel     programs, links, maps and rings of this node, as the agent holds them
    engine     one step of brain and hands for every change
    node       this node in the cluster: CiliumNode, pod prefixes, address pools
    place      all of that, kept right
    attach     CNI calls
    balancing  services: settings for brain and data path, the end of sockets whose backend is gone
    standalone services by hand: kept, put by the API, followed in a file
    health_ports  health checks of load balancers
    service_answers  services as the kernel has them, for API, status pages and metrics
    service_events  what is wrong with services, as Events
    verifying  whether the kernel has what it should
    publishing who writes what into the cluster, after each step
    publish    CiliumEndpoints
    statuses   what became of each policy: conditions, node by node, Events
    realisation  how far policies have got in the kernel
    identities CiliumIdentities for label sets that have none
    persist    work for an API server that may refuse or be away
    state      endpoints on disk
    operator_watch  whether an operator leads
    observability  all of Hubble in one agent: the store, what fills it, what reads it
    flows      from the kernel's rings into that store; `socket_owners` says whose sockets they are about
    hubble_doors  sockets, ports and TLS of Hubble's server, and where other nodes have theirs
    hubble_metrics  metrics of flows; `forecasting` says what more of them would cost
    exporting  flows into files
    drop_events  drops, as Events of their pods
    agent_events  what the agent did, into Hubble's log
    directory  Hubble's questions, answered from tables
    explain    why packets and flows pass or not; `ends` finds whom a question means
    check      what proposed policies would change
    usage      what policy entries and rules did
    backend    the API's questions, answered from tables and kernel; `map_words` names what maps hold
    metrics    Prometheus
    errors     what an operator is told of an agent that can't start
    cleanup    takes away what an agent leaves on its node

Here rooms that never meet are handed to each other; nothing is decided here that a pure room could decide.
"""
