"""How large gradients, weights and updates are. Reads what the optimizer reads and writes; changes no bit of it.

Gradients are those that all workers share, so that each worker alone finds the same numbers. Each tensor is measured
whole, and the tensors one after the other.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from get3d_cluster.get3d.discriminator import Discriminator

Part = Sequence[tuple[str, nn.Parameter]]
"""Parameters that are measured together, by name."""
Row = dict[str, float | str]
"""Of metrics.jsonl, or a part of one."""


def measured(step: Callable[[], None], parts: Mapping[str, Part]) -> Row:
    """Take a step of an optimizer, and return for each part, named by ``parts``, what it was made of.

    ``grad_norm_*`` and the parameter with most of it (``grad_most_*``), ``weight_norm_*`` after the step, and
    ``update_ratio_*``, the norm of the change over that of the weights. Holds a copy of the weights meanwhile.
    """
    row = gradient_norms(parts)
    before = {name: [parameter.detach().clone() for _, parameter in part] for name, part in parts.items()}
    step()
    for name, part in parts.items():
        weights = [parameter.detach() for _, parameter in part]
        torch._foreach_sub_(before[name], weights)
        weight, change = math.hypot(*norms(weights)), math.hypot(*norms(before[name]))
        row |= {f"weight_norm_{name}": weight, f"update_ratio_{name}": change / weight if weight else 0.0}
    return row


def gradient_norms(parts: Mapping[str, Part]) -> Row:
    """Return ``grad_norm_*`` and ``grad_most_*`` of each part."""
    row: Row = {}
    for name, part in parts.items():
        found = {key: parameter.grad for key, parameter in part if parameter.grad is not None}
        each = dict(zip(found, norms(list(found.values())), strict=True))
        row[f"grad_norm_{name}"] = math.hypot(*each.values())
        if each:
            row[f"grad_most_{name}"] = max(each, key=lambda key: each[key])
    return row


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the Euclidean norm of each tensor."""
    if not tensors:
        return []
    found: list[float] = torch.stack([torch.linalg.vector_norm(each) for each in tensors]).tolist()
    return found


def parts_of(generator: nn.Module, discriminator: Discriminator) -> dict[str, dict[str, Part]]:
    """Return what is measured in each phase, named as its losses are."""
    heads = {name: list(getattr(discriminator, name).named_parameters()) for name in ("rgb", "mask")}
    return {
        "generator": {"g": list(generator.named_parameters())},
        "discriminator": {f"d_{name}": part for name, part in heads.items()},
        "r1": {f"r1_{name}": part for name, part in heads.items()},
    }
