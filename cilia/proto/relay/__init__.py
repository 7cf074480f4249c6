"""Generated from `proto/relay`."""
