"""What an operator is told when an agent can't start."""


class StartError(Exception):
    """The agent can't start; one sentence that says what to do."""
