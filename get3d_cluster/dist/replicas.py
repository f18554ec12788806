"""Whether all workers still hold the same state, bit for bit.

They get equal gradients and do equal arithmetic, so a difference means that a machine computed or remembered wrong.
The bits of each tensor are added as integers, which is exact in any order; a few bytes a tensor are exchanged.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from get3d_cluster.dist.agreement import digest_of, first_difference
from get3d_cluster.dist.group import Group
from get3d_cluster.errors import HeldError

_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MOST_NAMES = 4


def bit_sums(tensors: Mapping[str, Tensor]) -> Tensor:  # [tensors] int64
    """Return for each tensor the sum of its elements' bits as integers, modulo 2**64."""
    sums = [
        tensor.detach().resolve_conj().resolve_neg().contiguous().view(_AS_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors.values()
    ]
    if not sums:
        return torch.zeros(0, dtype=torch.int64)
    device = next((each.device for each in sums if each.device.type != "cpu"), sums[0].device)
    return torch.stack([each.to(device) for each in sums])  # Adam counts its steps on the host


def check_replicas(
    group: Group, tensors: Mapping[str, Tensor], step: int, agreed_step: int | None = None
) -> None:
    """Compare ``tensors`` over all workers, all of which call it. ``agreed_step``: when they were last found equal.

    Raises: HeldError, on all workers, that names the ranks that differ from most.
    """
    if group.world_size == 1:
        return
    rows = [tuple(row.tolist()) for row in group.all_gather(bit_sums(tensors))]
    if len(set(rows)) == 1:
        return
    (most, count), *_ = Counter(rows).most_common()
    wrong = [rank for rank, row in enumerate(rows) if row != most]
    names = [name for i, name in enumerate(tensors) if len({row[i] for row in rows}) > 1]
    since = "this attempt began" if agreed_step is None else f"step {agreed_step}"
    where = f"{len(names)} of {len(tensors)} tensors, first {names[0]}"
    raise HeldError(
        f"step {step}: {_who(wrong, count, len(rows))} other bits than the rest in {where}; all were equal at {since}",
        f"a machine computed or remembered wrong: look at its memory and GPU, leave its node out "
        f"(resources.exclude on SLURM), then resume: training compares before each save, so its newest checkpoint "
        f"is not after {since}",
    )


def unlike(group: Group, tensors: Mapping[str, Tensor]) -> str | None:
    """Say which tensor is the first that a rank has otherwise than rank 0, and which rank; None: all are equal.

    All workers call it. Names, types and shapes may differ, too.
    """
    if group.world_size == 1:
        return None
    plan = [f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()]
    sums = bit_sums(tensors).cpu()
    mine = torch.tensor([_number(plan), _number([str(sums.tolist())])])
    rows = [row.tolist() for row in group.all_gather(mine)]
    if plans := [rank for rank, row in enumerate(rows) if row[0] != rows[0][0]]:
        there, here = first_difference(group, plan, plans[0])
        return f"{there} on rank {plans[0]}, {here} on rank 0"
    if all(row == rows[0] for row in rows):
        return None
    table = torch.stack(group.all_gather(sums))
    differs = table != table[0]  # [ranks, tensors]
    first = int(differs.any(dim=0).int().argmax())
    return f"{list(tensors)[first]} on rank {int(differs[:, first].int().argmax())}"


def _number(lines: Sequence[str]) -> int:
    return int.from_bytes(bytes.fromhex(digest_of(lines)), signed=True)


def _who(wrong: list[int], most: int, world_size: int) -> str:
    if 2 * most <= world_size:
        return "no majority of the workers agrees, and ranks have"
    shown = ", ".join(map(str, wrong[:_MOST_NAMES])) + (", ..." if len(wrong) > _MOST_NAMES else "")
    return f"rank {shown} has" if len(wrong) == 1 else f"ranks {shown} have"
