"""Generated from `proto/peer`."""
