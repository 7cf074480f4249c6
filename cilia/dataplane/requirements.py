"""What the node must offer before anything is loaded; each thing missing is one clear sentence."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from cilia.dataplane.bpf import BpfError

CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
}
"""By number (linux/capability.h). SYS_ADMIN implies BPF and PERFMON, and alone opens maps by number."""

BPFFS_MAGIC = 0xCAFE4A11
MINIMUM_KERNEL = (6, 2)
"""Of bpf_rcu_read_lock, the youngest function the programs call; TCX (6.6) has a fallback."""

_libc = ctypes.CDLL(None, use_errno=True)


def missing(release: str, status: str) -> list[str]:
    """Sentences for what `uname -r` and /proc/self/status lack. Pure."""
    problems = []
    version = kernel_version(release)
    if version < MINIMUM_KERNEL:
        wanted = ".".join(map(str, MINIMUM_KERNEL))
        problems.append(f"the kernel is {release}: {wanted} or newer is needed, boot a newer kernel")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    held = int(found.group(1), 16) if found else 0
    lacking = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if lacking:
        problems.append(f"the process lacks {' and '.join(lacking)}: run it as root")
    return problems


def kernel_version(release: str) -> tuple[int, int]:
    """(major, minor) of a release such as 6.6.31-cloud; (0, 0) when it is not one."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def check() -> None:
    """Raise BpfError when this process can't drive the data path here."""
    problems = missing(os.uname().release, Path("/proc/self/status").read_text())
    if problems:
        raise BpfError("; ".join(problems))


def is_bpffs(path: Path) -> bool:
    """Whether `path` (or its nearest existing parent) lies on a BPF file system."""
    while not path.exists():
        path = path.parent
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[:4], "little") == BPFFS_MAGIC


def ensure_bpffs(prefix: Path, root: Path = Path("/sys/fs/bpf")) -> None:
    """Make sure that `prefix` lies on a BPF file system; mounts one at the usual place if that is empty
    of one. Raises BpfError."""
    if is_bpffs(prefix):
        return
    if not prefix.is_relative_to(root):
        raise BpfError(f"{prefix} is not on a BPF file system: choose a prefix under {root}")
    if _libc.mount(b"bpf", os.fsencode(root), b"bpf", 0, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise BpfError(f"no BPF file system at {root} ({reason}): run mount -t bpf bpf {root}")
