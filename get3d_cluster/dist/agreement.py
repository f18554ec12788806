"""Whether all workers reduce the same: the plan of a phase, line by line, compared by its digest."""

import hashlib
from collections.abc import Sequence
from itertools import zip_longest

import torch

from get3d_cluster.dist.group import Group
from get3d_cluster.errors import UsageError

_LONGEST_LINE = 256
_MOST_RANKS = 4
_NOTHING = "nothing"


def digest_of(plan: Sequence[str]) -> str:
    """Return 16 hexadecimal digits that tell plans apart."""
    return hashlib.blake2b("\n".join(plan).encode(), digest_size=8).hexdigest()


def check_agreement(phase: str, group: Group, plan: Sequence[str]) -> str:
    """Compare ``plan`` over all workers, all of which call it; return its digest.

    Raises: UsageError, on all workers, that names the phase, the ranks that differ from rank 0, and the first of their
    lines that does.
    """
    digest = digest_of(plan)
    number = int.from_bytes(bytes.fromhex(digest), signed=True)
    numbers = [int(row.item()) for row in group.all_gather(torch.tensor([number]))]
    if len(set(numbers)) > 1:
        others = [rank for rank, other in enumerate(numbers) if other != numbers[0]]
        raise _refusal(phase, others, *first_difference(group, plan, others[0]))
    return digest


def first_difference(group: Group, plan: Sequence[str], rank: int) -> tuple[str, str]:
    """Return the first line of ``rank`` that rank 0 has otherwise, and rank 0's. All workers call it."""
    pairs = zip_longest(plan, group.broadcast(list(plan)), fillvalue=_NOTHING)
    mine, theirs = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    said = group.all_gather(torch.stack([_bytes(mine), _bytes(theirs)]))[rank]
    return _text(said[0]), _text(said[1])


def _refusal(phase: str, ranks: Sequence[int], there: str, here: str) -> UsageError:
    shown = ", ".join(map(str, ranks[:_MOST_RANKS])) + (", ..." if len(ranks) > _MOST_RANKS else "")
    who = f"rank{'s' * (len(ranks) > 1)} {shown}"
    return UsageError(
        f"phase {phase}: {who} would reduce other gradients than rank 0: {there!r} there, {here!r} on rank 0",
        "start all workers with one configuration and one copy of the code",
    )


def _bytes(text: str) -> torch.Tensor:  # [_LONGEST_LINE] uint8
    cut = text.encode()[:_LONGEST_LINE]
    return torch.tensor(list(cut.ljust(_LONGEST_LINE, b"\0")), dtype=torch.uint8)


def _text(row: torch.Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
