"""The container runtime's side of CNI: find the configuration list and call its plugins.

Source: the CNI specification 1.0.0 and 1.1.0, sections 3 ("execution protocol") and 5 (results), and the
arguments a kubelet's runtime gives (K8S_POD_NAMESPACE and its siblings in CNI_ARGS).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from cilia.lab.plan import NodePlan
from cilia.lab.records import PodRecord

TIMEOUT = 30.0
"""Seconds a plugin may take."""
INTERFACE = "eth0"
TRY_AGAIN = 11
"""CNI error code: the plugin asks to be called again later."""

Command = Literal["ADD", "DEL", "CHECK"]


class CniError(Exception):
    """A plugin refused or failed; `code` is its CNI error code, 0 when it gave none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def find_config(node: NodePlan) -> dict[str, Any] | None:
    """Return the first configuration list by name, as a kubelet picks it; None when there is none."""
    for path in sorted(Path(node.cni_conf).glob("*.conflist")):
        try:
            config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            continue
        except msgspec.DecodeError as error:
            raise CniError(f"{path} is not a CNI configuration list: {error}") from error
        return config
    return None


async def add(node: NodePlan, pod: PodRecord) -> tuple[str, ...]:
    """Attach a pod and return its addresses, IPv4 first; raises CniError."""
    result = await _call_all("ADD", node, pod)
    addresses = [str(entry["address"]).partition("/")[0] for entry in result.get("ips", [])]
    Path(pod.directory, "cni-result.json").write_bytes(msgspec.json.encode(result))
    return tuple(sorted(addresses, key=lambda address: ":" in address))


async def delete(node: NodePlan, pod: PodRecord) -> None:
    """Detach a pod; raises CniError."""
    await _call_all("DEL", node, pod)


async def check(node: NodePlan, pod: PodRecord) -> None:
    """Ask whether a pod is attached as it was; raises CniError when not."""
    await _call_all("CHECK", node, pod)


async def _call_all(command: Command, node: NodePlan, pod: PodRecord) -> dict[str, Any]:
    config = find_config(node)
    if config is None:
        raise CniError(f"the network of {node.name} is not ready: no CNI configuration in {node.cni_conf}")
    plugins = config["plugins"]
    result = _previous_result(command, pod)
    for plugin in reversed(plugins) if command == "DEL" else plugins:
        request = {"cniVersion": config["cniVersion"], "name": config["name"], **plugin}
        if result:
            request["prevResult"] = result
        answer = await _call(command, str(plugin["type"]), request, node, pod)
        if command == "ADD":
            result = answer
    return result


def _previous_result(command: Command, pod: PodRecord) -> dict[str, Any]:
    if command == "ADD":
        return {}
    try:
        return msgspec.json.decode(Path(pod.directory, "cni-result.json").read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}


def environment(command: Command, node: NodePlan, pod: PodRecord) -> dict[str, str]:
    """Return the variables of the protocol."""
    arguments = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.sandbox,
        "K8S_POD_UID": pod.uid,
    }
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.sandbox,
        "CNI_NETNS": pod.netns,
        "CNI_IFNAME": INTERFACE,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
        "CNI_PATH": node.cni_bin,
        "PATH": os.environ.get("PATH", os.defpath),
    }


async def _call(
    command: Command, plugin: str, request: dict[str, Any], node: NodePlan, pod: PodRecord
) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        "nsenter",
        f"--net={node.netns}",
        "--",
        f"{node.cni_bin}/{plugin}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(command, node, pod),
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            output, complaint = await process.communicate(msgspec.json.encode(request))
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise CniError(f"{plugin} {command} did not end within {TIMEOUT:.0f} s", TRY_AGAIN) from error
    return _answer(f"{plugin} {command}", process.returncode or 0, output, complaint)


def _answer(subject: str, status: int, output: bytes, complaint: bytes) -> dict[str, Any]:
    """Turn a plugin's exit into its result or a CniError."""
    try:
        answer = msgspec.json.decode(output, type=dict[str, Any]) if output.strip() else {}
    except msgspec.DecodeError:
        answer = {"msg": output.decode(errors="replace")[:400]}
        status = status or 1
    if status == 0:
        return answer
    parts = [answer.get("msg"), answer.get("details"), complaint.decode(errors="replace").strip()[-400:]]
    reason = "; ".join(str(part) for part in parts if part) or f"exit status {status}"
    raise CniError(f"{subject}: {reason}", int(answer.get("code", 0)))
