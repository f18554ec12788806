"""Two machines on one: network namespaces joined by a slow link, unlimited inside each. Needs root and iproute2."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

LINK = "get3d0"
"""Name of each node's end of the link."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    name: str
    address: str

    def command(self, *words: object) -> list[str]:
        """Return a command line that runs ``words`` on this node."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def sent_bytes(self) -> int:
        """Return what left this node over the link so far."""
        path = f"/sys/class/net/{LINK}/statistics/tx_bytes"
        return int(subprocess.run(self.command("cat", path), check=True, capture_output=True).stdout)


def why_not() -> str:
    """Say why there can be no nodes here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found: apt-get install iproute2"
    name = f"get3d-try-{os.getpid()}"
    if _ip("netns", "add", name, check=False).returncode:
        return "this machine lets nobody make network namespaces"
    _ip("netns", "delete", name)
    return ""


@contextmanager
def two_nodes(mbit_s: int) -> Iterator[tuple[Node, Node]]:
    """Give two nodes whose link carries ``mbit_s`` each way."""
    names = [f"get3d-{os.getpid()}-{side}" for side in "ab"]
    nodes = tuple(Node(name=name, address=f"10.231.77.{i + 1}") for i, name in enumerate(names))
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
        a, b = nodes
        ends = [LINK, "netns", a.name, "type", "veth", "peer", "name", LINK, "netns", b.name]
        _ip("link", "add", *ends)
        for node in nodes:
            _run(node, "ip", "link", "set", "lo", "up")
            _run(node, "ip", "address", "add", f"{node.address}/24", "dev", LINK)
            _run(node, "ip", "link", "set", LINK, "up")
            limit = f"root tbf rate {mbit_s}mbit burst 128kb latency 100ms"
            _run(node, "tc", "qdisc", "add", "dev", LINK, *limit.split())
        yield a, b
    finally:
        for node in nodes:
            with suppress(OSError):
                _ip("netns", "delete", node.name, check=False)


def _run(node: Node, *words: str) -> None:
    subprocess.run(node.command(*words), check=True)


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], check=check, capture_output=not check)
