"""Whether the losses and gradients of a phase are finite, and which are not: decides if its step is taken."""

import torch
from torch import Tensor, nn

from get3d_cluster.train.rows import shortened


def is_finite(model: nn.Module, numbers: Tensor) -> bool:
    """Look at sums, which no infinity or NaN leaves finite."""
    sums = torch.stack([numbers.sum(), *(gradient.sum() for _, gradient in _gradients(model))])
    return bool(sums.isfinite().all())


def what_is_not_finite(model: nn.Module, numbers: Tensor) -> str:
    """Say it in the words of the event ``skipped``."""
    names = [name for name, gradient in _gradients(model) if not gradient.sum().isfinite()]
    if not names:
        return f"its losses {[shortened(value) for value in numbers.tolist()]}"
    return f"{len(names)} gradients, first {names[0]}"


def _gradients(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
