"""Adam as torch computes it, without the compiler that torch would load for it: a second at each start of a worker.

torch wraps what an optimizer does so that a compiled program leaves it alone, and loads its compiler to do so. Nothing
is compiled here. What lies within the wrappers is torch's own, and so are the bits.
"""

import inspect
from typing import Any

import torch
from torch.optim import Adam as TorchAdam
from torch.optim.optimizer import Optimizer


class Adam(TorchAdam):
    """torch's Adam. ``differentiable`` and closures are not offered."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = inspect.unwrap(Optimizer.state_dict)(self)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        inspect.unwrap(Optimizer.load_state_dict)(self, state_dict)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        inspect.unwrap(TorchAdam.step)(self)
