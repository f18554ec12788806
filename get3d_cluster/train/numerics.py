"""The switches of torch that decide bits. They belong to the whole process."""

import torch


def fix(device: str) -> None:
    """Make torch compute on ``device`` the same bits each time, in whole float32.

    TF32, with its ten bits of mantissa, would be the default for convolutions on GPUs. Autotuning times its candidates,
    so it may choose another one in the next process.
    """
    torch.set_deterministic_debug_mode("error")  # the other switch loads the compiler: a second
    # A check for bugs that costs a pass over all new memory; torch sets the flag through the module's class.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
