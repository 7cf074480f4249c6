"""A stand-in for the agent: plain kernel routing behind the agent's command line.

It lets the lab be tested alone: it writes a CNI plugin and its configuration, as an agent does when it is
ready, and the plugin joins pods by veth pairs and routes. Run with an agent's options it is the agent, with
`cni` the plugin.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

UNDERLAY = ("172.18.0.", "fd00:172:18::")
NODES = 4


def ip(*words: str, netns: str = "") -> None:
    prefix = ["nsenter", f"--net={netns}"] if netns else []
    subprocess.run([*prefix, "ip", *words], check=True)


def cidrs(index: int) -> tuple[str, str]:
    return f"10.244.{index}.0/24", f"fd00:10:244:{index:x}::/64"


def agent(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    for name in ("node-name", "state-dir", "cni-bin-dir", "cni-conf-dir"):
        parser.add_argument(f"--{name}", required=True)
    options, _ = parser.parse_known_args(arguments)
    index = int(options.node_name.rpartition("-")[2]) - 1
    for other in range(NODES):
        if other != index:
            for cidr, prefix in zip(cidrs(other), UNDERLAY, strict=True):
                ip("route", "replace", cidr, "via", f"{prefix}{11 + other}")
    Path(options.state_dir).mkdir(parents=True, exist_ok=True)
    plugin = Path(options.cni_bin_dir, "stand-in")
    plugin.write_text(f"#!/bin/sh\nexec {sys.executable} -IS {Path(__file__).resolve()} cni\n")
    plugin.chmod(0o700)
    entry = {"type": "stand-in", "index": index, "state": options.state_dir}
    config = {"cniVersion": "1.0.0", "name": "stand-in", "plugins": [entry]}
    Path(options.cni_conf_dir, "05-stand-in.conflist").write_text(json.dumps(config))
    signal.pause()


def plugin() -> dict[str, Any]:
    request = json.load(sys.stdin)
    state = Path(request["state"])
    name = "p" + os.environ["CNI_CONTAINERID"][:10]
    if os.environ["CNI_COMMAND"] == "CHECK":
        subprocess.run(["ip", "link", "show", name], check=True, stdout=subprocess.DEVNULL)
        return {}
    if os.environ["CNI_COMMAND"] == "DEL":
        subprocess.run(["ip", "link", "del", name], check=False, stderr=subprocess.DEVNULL)
        (state / name).unlink(missing_ok=True)
        return {}
    if (state / "refuse").exists():
        raise OSError("the stand-in was told to refuse")
    (state / name).touch()
    host = 10 + len(list(state.glob("p*")))
    return attach(name, int(request["index"]), host)


def attach(name: str, index: int, host: int) -> dict[str, Any]:
    netns = os.environ["CNI_NETNS"]
    ipv4, ipv6 = f"10.244.{index}.{host}", f"fd00:10:244:{index:x}::{host:x}"
    ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", netns)
    ip("address", "add", "169.254.1.1/32", "dev", name)
    ip("address", "add", "fe80::1/64", "dev", name, "nodad")
    ip("link", "set", name, "up")
    ip("link", "set", "eth0", "up", netns=netns)
    for address, gateway in ((f"{ipv4}/32", "169.254.1.1"), (f"{ipv6}/128", "fe80::1")):
        extra = ["nodad"] if ":" in address else []
        ip("address", "add", address, "dev", "eth0", *extra, netns=netns)
        ip("route", "replace", address, "dev", name)
        family = "-6" if ":" in address else "-4"
        ip(family, "route", "add", "default", "via", gateway, "dev", "eth0", "onlink", netns=netns)
    ips = [{"address": f"{ipv4}/32", "interface": 0}, {"address": f"{ipv6}/128", "interface": 0}]
    return {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": netns}], "ips": ips}


def main() -> None:
    if sys.argv[1:] != ["cni"]:
        agent(sys.argv[1:])
        return
    try:
        print(json.dumps(plugin()))
    except (OSError, subprocess.CalledProcessError) as error:
        print(json.dumps({"cniVersion": "1.0.0", "code": 100, "msg": str(error)}))
        sys.exit(1)


if __name__ == "__main__":
    main()
