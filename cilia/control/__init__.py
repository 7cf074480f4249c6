"""The brain: input tables in, desired tables out.

Belongs here: decisions as pure, synchronous, memoryless computation. Does not: clocks, sockets, files,
the kernel, the API server. Time is an argument. Reads `schema.Inputs`, writes `schema.Desired`; a test
can run it twice, offline, or on yesterday's inputs. Start reading at `graph.py`.
"""
