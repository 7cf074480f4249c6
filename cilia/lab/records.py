"""What the lab writes down: its plan, its processes and its pods, as small files in the state directory.

A process is known by its id and its start time, so that a number the system has given to somebody else is
never mistaken for ours. Source: proc(5), /proc/PID/stat field 22.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from cilia.kit.files import write_atomic
from cilia.lab.plan import STATE_ROOT, LabPlan, PlanError, state_directory

Record = TypeVar("Record", bound=msgspec.Struct)


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the lab."""

    name: str
    """`apiserver`, `operator`, `daemon`, `agent/NODE`."""
    pid: int
    started: int
    """Clock ticks since boot."""
    log: str = ""


class PodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's sandbox, written before anything of it is made."""

    namespace: str
    name: str
    uid: str
    node: str
    sandbox: str
    """The container ID the CNI plugin is called with."""
    netns: str
    directory: str
    pid: int = 0
    started: int = 0
    ips: tuple[str, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    """What the built-in echo server listens on: (protocol, port)."""

    @property
    def control_socket(self) -> str:
        """Where the pod's prober takes requests."""
        return f"{self.directory}/control.sock"

    @property
    def log(self) -> str:
        """What the pod's processes print."""
        return f"{self.directory}/log"


def start_time(pid: int) -> int:
    """Return when a process started; 0 when there is none, or only its remains."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text[text.rindex(")") + 2 :].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def alive(record: ProcessRecord | PodRecord) -> bool:
    """Whether exactly this process still runs."""
    return record.pid > 0 and start_time(record.pid) == record.started


def write(path: Path, record: msgspec.Struct) -> None:
    """Write a record; it need not survive a power cut, for the lab does not either."""
    write_atomic(path, msgspec.json.encode(record), durable=False)


def read(path: Path, kind: type[Record]) -> Record | None:
    """Read a record; None when there is none, or not a whole one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def plan_path(state: Path) -> Path:
    """Where a lab's plan is written."""
    return state / "plan.json"


def find_lab(name: str, root: Path = STATE_ROOT) -> LabPlan:
    """Return the plan of a running lab; raises PlanError with what to do when there is none."""
    plan = read(plan_path(state_directory(name, root)), LabPlan)
    if plan is None:
        others = [entry.name for entry in list_labs(root)]
        hint = f"; running: {', '.join(others)} (name one with --name)" if others else ""
        raise PlanError(f"no lab {name!r} is up: start it with `cilia lab up`{hint}")
    return plan


def list_labs(root: Path = STATE_ROOT) -> list[Path]:
    """Return the state directories of all labs, whole or half-made."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


def processes(plan: LabPlan) -> list[ProcessRecord]:
    """Return the lab's processes as written down, dead ones included."""
    directory = Path(plan.state, "processes")
    found = [read(path, ProcessRecord) for path in sorted(directory.glob("*.json"))]
    return [record for record in found if record is not None]


def process_path(plan: LabPlan, name: str) -> Path:
    """Where a process is written down."""
    return Path(plan.state, "processes", name.replace("/", "-") + ".json")


def find_process(plan: LabPlan, name: str) -> ProcessRecord | None:
    """Return one process as written down."""
    return read(process_path(plan, name), ProcessRecord)


def pods(plan: LabPlan) -> list[PodRecord]:
    """Return the lab's pods, by namespace and name."""
    found = [read(path, PodRecord) for path in Path(plan.pods_dir).glob("*/pod.json")]
    return sorted(
        (record for record in found if record is not None), key=lambda pod: (pod.namespace, pod.name)
    )


def find_pod(plan: LabPlan, namespace: str, name: str) -> PodRecord:
    """Return a running pod; raises PlanError."""
    for pod in pods(plan):
        if (pod.namespace, pod.name) == (namespace, name) and alive(pod):
            return pod
    raise PlanError(f"no pod {namespace}/{name} runs in the lab: see `cilia lab status`")
