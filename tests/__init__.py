"""Tests; see the architecture page for what each directory needs to run."""
