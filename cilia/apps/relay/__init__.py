"""hubble-relay: answers for all nodes.

    settings   what an operator may set
    command    the command line
    running    settings to a relay that serves until it is told to stop
    doors      where it listens, and what TLS it speaks there and to nodes

How nodes are found and asked, and their answers merged, is decided in `cilia.relay`.
"""


def main() -> None:
    """Entry point of the executable."""
    from cilia.apps.relay.command import app

    app(prog_name="hubble-relay")
