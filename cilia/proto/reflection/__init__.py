"""Generated from `proto/reflection`."""
