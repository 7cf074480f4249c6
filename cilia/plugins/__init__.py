"""Doors for other people's programs: each plugin carries its caller's request to the agent and back.

Belongs here: the executables a container runtime calls, and how they get to where the runtime looks for
them. Does not: knowledge of networks, or any decision; the agent has both. Talks to the agent's sockets.
"""
