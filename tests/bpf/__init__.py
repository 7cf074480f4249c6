"""Packets through the programs with BPF_PROG_TEST_RUN, and policies through their batch program.

A package, so that the loaded data path and its private network end with the last of these tests: what runs
after them has the machine's network and all its CPUs again.
"""
