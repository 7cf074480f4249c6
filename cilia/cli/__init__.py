"""The `cilia` command: what people type to look at a node.

Belongs here: commands, their flags, and how answers are printed. Does not: any knowledge of the kernel or
the cluster; commands ask the agent's REST API (`cilia.api.client`) and Hubble's server, nothing else.

    main.py      the root command; loads the module of a command only when it is called
    lazy.py      how it does that
    options.py   flags all commands share, and the way to the agent
    errors.py    what a user is told of things that went wrong
    output.py    tables, JSON and YAML
    completing.py completion.py   names a shell offers after Tab, and the script for that
    hubble.py    `cilia hubble`: the commands about Hubble by the names that `hubble` has for them
      observe.py observe_events.py record.py observers.py certs.py hubble_config.py hubble_metrics.py
                 these commands
      certificate_set.py   what certs.py makes and renews
      hubble_server.py hubble_file.py port_forward.py   their flags about the server, their file, and a client
      filter_flags.py flow_filters.py request_filters.py windows.py moments.py   flags that choose flows
      flow_files.py flow_matching.py flow_json.py   flows of files, with the same filters
      flows.py flow_printing.py live.py   how flows are printed
      readers.py   ends what follows once nobody reads it
      sections.py completing_flows.py   help under headings; values a shell offers
    flows_sql.py flow_frames.py   `cilia flows sql`, and the data frames it asks
    explain.py   explanations and check reports as trees, for policy.py
    status.py endpoint.py identity.py addresses.py policy.py service.py nat.py maps.py bpf.py verify.py
    node.py config.py redirects.py

Errors are one sentence on standard error and exit code 1; exit code 2 is a wrong command line,
and for `policy check` whatever keeps it from checking.
"""
