"""Whether the losses and gradients of a phase are fit to step with, and which are not: decides if its step is taken.

Both are sums over all workers by then, so that all decide alike.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from get3d_cluster.train.rows import shortened


def trouble_of(model: nn.Module, numbers: Tensor, losses: Mapping[str, float], max_loss: float) -> str:
    """Say what is not finite, or which of ``losses`` is beyond ``max_loss`` ; empty if all is well."""
    if not is_finite(model, numbers):
        return what_is_not_finite(model, numbers)
    beyond = [f"{name}={shortened(value)}" for name, value in losses.items() if abs(value) > max_loss]
    return f"{', '.join(beyond)} beyond guard.max_loss={max_loss:g}" if beyond else ""


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
