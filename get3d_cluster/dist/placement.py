"""On which nodes the workers sit."""

import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from get3d_cluster.dist.group import Group

_LONGEST_NAME = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The node of each rank."""

    nodes: tuple[str, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the ranks of each node follow each other."""
        changes = sum(a != b for a, b in zip(self.nodes, self.nodes[1:], strict=False))
        return changes + 1 == len(set(self.nodes))

    @property
    def local_size(self) -> int:
        """Workers of each node; 1 if nodes differ in it, or ranks of a node do not follow each other."""
        counts = {self.nodes.count(node) for node in self.nodes}
        return counts.pop() if self.is_contiguous and len(counts) == 1 else 1


def gather_placement(group: Group, node: str = "") -> Placement:
    """Ask all workers for their node; rank 0 warns if their order makes every byte cross the network twice."""
    if group.world_size == 1:
        return Placement(nodes=(node or socket.gethostname(),))
    name = (node or socket.gethostname()).encode()[:_LONGEST_NAME]
    mine = torch.zeros(_LONGEST_NAME, dtype=torch.uint8)
    mine[: len(name)] = torch.tensor(list(name), dtype=torch.uint8)
    placement = Placement(nodes=tuple(_text(row) for row in group.all_gather(mine)))
    if not placement.is_contiguous and group.rank == 0:
        warnings.warn(_advice(placement.nodes), stacklevel=2)
    return placement


def _advice(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:4]) + (", ..." if len(nodes) > 4 else "")
    return (
        f"the ranks are dealt out over the nodes in turn ({shown}), so gradients cross the network more often than "
        f"they have to: start the job with sbatch --distribution=block"
    )


def _text(row: torch.Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
