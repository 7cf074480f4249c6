"""`cilia demo`: run the story and end with its verdict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cilia.lab import cgroups, control, records, teardown
from cilia.lab.demo.stage import Stage, Unexpected
from cilia.lab.demo.story import EXAMPLES, Story, make_demo_plan

LAB = "demo"


def demo(
    record: Annotated[
        Path | None, typer.Option(help="Also write the output to a file: .svg for a picture, else text.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The name of the demo's lab.")] = LAB,
) -> None:
    """Run the main job on a lab of two nodes and check every step; status 0 when all is as expected."""
    stage = Stage(record=record is not None, width=118 if record else None)
    try:
        _preconditions()
        plan = make_demo_plan(name)
        daemon = records.find_process(plan, "daemon")
        if daemon is not None and records.alive(daemon):
            raise Unexpected("no other demo", f"one runs: wait for it, or run `cilia lab down --name {name}`")
        if teardown.take_down(name):
            stage.note("remains of an earlier demo were taken away first")
        Story(plan, stage).tell()
        failure = None
    except Unexpected as error:
        failure = error
    except (control.ControlError, teardown.TeardownError, cgroups.CgroupError) as error:
        failure = Unexpected("the lab to answer", str(error))
    stage.end(failure)
    if record is not None:
        stage.save(record)
    raise typer.Exit(0 if failure is None else 1)


def _preconditions() -> None:
    if os.geteuid() != 0:
        raise Unexpected("to run as root, for namespaces and eBPF", f"user {os.geteuid()}")
    if not EXAMPLES.is_dir():
        raise Unexpected(f"the demo's manifests in {EXAMPLES}", "no such directory: run from a clone")
