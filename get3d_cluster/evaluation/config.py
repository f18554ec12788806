"""Settings of an evaluation. Pure: a login node reads them without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from get3d_cluster.errors import UsageError

Offline = Literal["random-conv", "pooled"]
Range = Literal["0..255", "0..1", "-1..1"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """What images are compared by. FID, KID, precision and recall need the Inception that you give; see
    docs/evaluating.md.
    """

    path: Path | None = None
    """TorchScript file of an Inception-v3; null: offline features, whose distances are never called FID."""
    output: str = ""
    """Which part of what it returns is the features: a number for a tuple, a name for a dictionary; empty: all."""
    return_features: bool = False
    """Call it with return_features=True, as the TorchScript Inception that came with StyleGAN2-ADA wants."""
    input_range: Range = "0..255"
    """What it expects black and white to be."""
    input_px: int = 0
    """Side that images are resized to before (299 for a bare Inception); 0: it resizes by itself."""
    input_bytes: bool = False
    """Give it uint8 instead of float32; only with input_range=0..255."""
    offline: Offline = "random-conv"
    """Features without a file: convolutions of fixed random weights, or averages of 8 x 8 cells."""
    batch: int = 32
    """Images at a time; part of the numbers' last bits."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch={self.batch} must be at least 1", "leave it out for 32")
        if self.input_px < 0:
            raise UsageError(
                f"input_px={self.input_px} must be 0 or more", "set 299, or 0 if it resizes by itself"
            )
        if self.input_bytes and self.input_range != "0..255":
            raise UsageError(
                f"input_bytes=true cannot hold input_range={self.input_range}",
                "set input_range=0..255, or input_bytes=false",
            )
