"""Generated from `proto/flow`."""
