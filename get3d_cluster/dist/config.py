"""How the gradients of the workers are added. Pure: a login node reads it without torch."""

from dataclasses import dataclass, field
from typing import Literal

from get3d_cluster.errors import UsageError

_CHANGEABLE = {"changeable": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReductionConfig:
    """How gradients are added over the workers. docs/hook.md says when to use what."""

    mode: Literal["exact", "exact_bf16", "fast", "flat"] = "exact"
    """exact: along the tree, while backward runs. exact_bf16: its top levels rounded, half the bytes there.
    fast: the library's all-reduce, whose bits depend on the number of workers. flat: one all-gather after backward."""
    bucket_mb: float = field(default=8.0, metadata=_CHANGEABLE)
    """Size of what is sent at once, in 10**6 bytes. Changes no bit."""
    bf16_levels: int = 1
    """Levels of the tree, from its top, that exact_bf16 rounds: log2 of the nodes rounds what crosses the network."""
    via: Literal["auto", "device", "host"] = field(default="auto", metadata=_CHANGEABLE)
    """With GPUs: exchange between their memories, or through that of the hosts. auto measures both at the start."""
    replica_check_every: int = field(default=1000, metadata=_CHANGEABLE)
    """Steps between comparisons of the workers' states, bit for bit; another comes before each save. 0: none."""

    def __post_init__(self) -> None:
        for name, least in (("bf16_levels", 1), ("replica_check_every", 0)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"{name}={getattr(self, name)} must be at least {least}",
                    f"give another value, or leave out {name}",
                )
        if not 0 < self.bucket_mb < float("inf"):
            raise UsageError(f"bucket_mb={self.bucket_mb:g} must be above 0", "8 suits most networks")

    @property
    def rounded_levels(self) -> int:
        """Levels of the tree whose sums are rounded to bf16."""
        return self.bf16_levels if self.mode == "exact_bf16" else 0
