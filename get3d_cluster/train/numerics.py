"""The switches of torch that decide bits. They belong to the whole process, and nothing else sets them."""

import contextlib
from collections.abc import Iterator

import torch


def fix(device: str, *, tf32: bool = False) -> None:
    """Make torch compute on ``device`` the same bits each time; in whole float32, or convolutions in TF32.

    TF32, with its ten bits of mantissa, would be the default for convolutions on GPUs. Matrix products are never in
    TF32: they make distances and deformations, and a switch could not tell them from others in a backward pass.
    Autotuning times its candidates, so it may choose another one in the next process.
    """
    torch.set_deterministic_debug_mode("error")  # the other switch loads the compiler: a second
    # A check for bugs that costs a pass over all new memory; torch sets the flag through the module's class.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Compute convolutions without TF32, forward and backward, until this is left."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
