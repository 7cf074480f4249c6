"""Takes away what an agent leaves on its node: the counterpart of everything the runtime sets up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from cilia.apps.agent.settings import AgentSettings
from cilia.dataplane import loader
from cilia.dataplane.links import Links
from cilia.plugins.cni import conflist, install


def remove_everything(settings: AgentSettings) -> Iterator[str]:
    """Remove, in the order in which nothing is left without its base; yields a line for each step.

    The runtime must stop calling first, then nobody may be attached, then the programs can go. Raises
    BpfError when an agent still runs on the node or the prefix, before anything is touched.
    """
    lock = loader.own_node()
    try:
        yield from _remove_all(settings)
    finally:
        os.close(lock)


def _remove_all(settings: AgentSettings) -> Iterator[str]:
    if settings.bpf_prefix.exists():
        os.close(loader.take_lock(settings.bpf_prefix))
    if settings.cni_conf_dir is not None:
        conflist.withdraw_conflist(conflist.ConflistSettings(directory=settings.cni_conf_dir))
        yield "CNI configuration withdrawn"
    if settings.cni_bin_dir is not None:
        install.remove_plugin(settings.cni_bin_dir)
        yield "CNI plugin removed"
    links = Links()
    try:
        yield f"{links.remove_all()} links removed"
    finally:
        links.close()
    loader.remove(settings.bpf_prefix)
    yield "programs and maps removed"
    for name in ("endpoints", "objects", "deleteQueue"):
        shutil.rmtree(settings.state_dir / name, ignore_errors=True)
    for name in ("node.json", "live.json", "host.json"):
        (settings.state_dir / name).unlink(missing_ok=True)
    yield "state removed"
