"""HTTP/2 as all of our connections want it: how clients begin, how both sides end."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.settings


def client_side(call: int, connection: int, frame: int) -> h2.connection.H2Connection:
    """A connection that has begun. In bytes: what a server may send ahead on one call, on all of them
    together, and in one frame."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    made.initiate_connection()
    made.update_settings(
        {
            h2.settings.SettingCodes.ENABLE_PUSH: 0,
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: call,
            h2.settings.SettingCodes.MAX_FRAME_SIZE: frame,
        }
    )
    # h2 looks at its limit once per read, before the acknowledgement in that read lifts it: a server's first
    # large frame would be refused when both arrive together.
    made.max_inbound_frame_size = frame
    made.increment_flow_control_window(connection)
    return made


def release(connection: h2.connection.H2Connection) -> None:
    """Let a connection that is over go with its last user.

    It holds a table of its own methods: without this, each waits for a garbage collection, which comes seldom
    to what has lived for long.
    """
    connection._frame_dispatch_table.clear()
