"""Kubernetes and cilium.io objects as Cilia reads and writes them.

Belongs here: frozen structs that mirror an API object field by field, under the names users write in
YAML, with the bounds the schema states; the custom resource definitions derived from those structs
(`crd`); what is wrong with an object that can't be decoded, in words (`faults`).
Does not belong here: what an object *means* (rules, identities, rows of the tables), how it is fetched,
clocks, I/O.
Talks to: nobody. `sources` and `operator` decode API bytes into these structs, `control` reads policy
structs.

Two habits hold everywhere. A list or object that may be absent is `None` when absent, because Kubernetes
gives "absent" and "empty" different meanings. Objects of policy kinds forbid unknown fields: a rule that
says something this version does not know must be refused with its path, never quietly enforced without
it.
"""
