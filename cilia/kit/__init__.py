"""Small tools every room may use and that know nothing of pods or policies.

Belongs here: clock, lengths of time, tasks, threads, backoff, logging, settings as flags, atomic files, sizes
of documents, TLS and certificates. Does not: anything that names a pod, an address or a policy. Imports
nothing else of Cilia.
"""
