"""Generated from `proto/health`."""
