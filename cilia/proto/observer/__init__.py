"""Generated from `proto/observer`."""
