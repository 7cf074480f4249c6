"""Measurements: each takes its baseline in the same run and prints ratios, as a table and as JSON."""
