"""What a command tells of things that went wrong for its user."""

from __future__ import annotations


class UserError(Exception):
    """What a command can't do, as one sentence that says what to do instead."""
