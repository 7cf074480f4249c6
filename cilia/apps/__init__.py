"""One composition root per process: wiring, settings and nothing that could be decided elsewhere.

Each module (or package) here is one executable. It builds the rooms, hands them to each other, and runs
until it is told to stop.
"""
