"""From images to the numbers that they are compared by. Letters: N images, H W pixels, D features."""

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.config import FeaturesConfig
from get3d_cluster.evaluation.draws import uniforms

INCEPTION_FEATURES = 2048
"""Numbers of Inception-v3's last pooling. With another count nothing is called FID."""
CELLS = 8
CONV_PX = 64
CONV_CHANNELS = (32, 64, 128, 256)

Features = NDArray[np.float32]
Net = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractorFacts:
    """What made some features: part of every result."""

    name: str
    digest: str
    """SHA-256 of the file or of the fixed weights, and of how it is called."""
    is_users: bool
    """A file that the user gave, not one of ours."""


class Extractor:
    """Turns 8-bit images into features, ``batch`` at a time."""

    def __init__(self, facts: ExtractorFacts, net: Net, batch: int) -> None:
        self.facts = facts
        self._net = net
        self._batch = batch

    @torch.no_grad()
    def features(
        self,
        images: Tensor,  # [N, 3, H, W] uint8
    ) -> Features:  # [N, D] float32
        """Return the features of ``images``.

        Raises: UsageError if the network returns something else than [N, D] finite numbers.
        """
        parts = [self._checked(self._net(part), len(part)) for part in images.split(self._batch)]
        return torch.cat(parts).cpu().numpy()

    def _checked(self, found: Any, count: int) -> Tensor:
        name = self.facts.name
        if not isinstance(found, Tensor):
            raise UsageError(
                f"features.path: {name} returned {_described(found)}, not one tensor",
                "say which part is the features: features.output=0 for the first of a tuple, or a name of a dictionary",
            )
        flat = found.flatten(1) if found.ndim > 1 else found
        if flat.ndim != 2 or len(flat) != count or found.shape[2:].numel() > 1:
            raise UsageError(
                f"features.path: {name} returned {list(found.shape)} for {count} images, not [{count}, D]",
                "give the pooled features, [N, D] or [N, D, 1, 1]; features.output chooses among several outputs",
            )
        if not bool(flat.isfinite().all()):
            bad = int((~flat.isfinite()).any(dim=1).nonzero()[0, 0])
            raise UsageError(
                f"{name} returned features that are not finite, first for image {bad} of {count}",
                "check features.input_range and features.input_px; a network in half precision may overflow",
            )
        return flat.float()


def open_extractor(config: FeaturesConfig, device: str) -> Extractor:
    """Return the user's Inception, or the offline features if there is none.

    Raises: UsageError if the file is absent or is no TorchScript.
    """
    if config.path is not None:
        return _torchscript(config, config.path, device)
    if config.offline == "pooled":
        facts = ExtractorFacts(name="pooled", digest=_digest(b"pooled", f"{CELLS}"), is_users=False)
        return Extractor(facts, _pooled, config.batch)
    weights = _random_weights()
    shapes = [weight.tobytes() for weight in weights]
    facts = ExtractorFacts(name="random-conv", digest=_digest(b"".join(shapes), f"{CONV_PX}"), is_users=False)
    layers = [torch.from_numpy(weight).to(device) for weight in weights]
    return Extractor(facts, lambda images: _convolved(images.to(device), layers), config.batch)


def as_bytes(
    images: Tensor,  # [N, C, H, W] in [-1, 1]
) -> Tensor:  # [N, C, H, W] uint8
    """Return 8-bit images: x * 127.5 + 128, cut off.

    Source: upstream's. It maps -1 to 0.5 and so black to 0, and real images come back as they were.
    """
    return (images * 127.5 + 128.0).clamp(0, 255).to(torch.uint8)


def _torchscript(config: FeaturesConfig, path: Path, device: str) -> Extractor:
    if not path.is_file():
        raise UsageError(
            f"features.path={path} is not there",
            "give the TorchScript file of an Inception-v3 (docs/evaluating.md says how to make one), or leave"
            " features.path out for offline features, whose distances are not FID",
        )
    module = _loaded(path, device)
    called = f"{config.output} {config.return_features} {config.input_range} {config.input_px} {config.input_bytes}"
    facts = ExtractorFacts(name=path.stem, digest=_digest(path.read_bytes(), called), is_users=True)

    def net(images: Tensor) -> Tensor:
        ready = _prepared(images.to(device), config)
        try:
            found = module(ready, return_features=True) if config.return_features else module(ready)
        except (RuntimeError, TypeError) as error:
            raise UsageError(
                f"features.path={path} does not take {list(ready.shape)} {ready.dtype}: {_last_line(error)}",
                "see features.input_range, input_px, input_bytes and return_features in docs/evaluating.md",
            ) from error
        part: Tensor = _part(found, config.output)
        return part

    return Extractor(facts, net, config.batch)


def _loaded(path: Path, device: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format, which users' files have
            return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"features.path={path} is no TorchScript file: {_last_line(error)}",
            "save the network with torch.jit.script(...).save(...); a pickled module or state_dict will not do",
        ) from error


def _prepared(images: Tensor, config: FeaturesConfig) -> Tensor:
    if config.input_bytes and not config.input_px:
        return images
    values = images.float()
    if config.input_px:
        values = torch.nn.functional.interpolate(
            values, (config.input_px, config.input_px), mode="bilinear", antialias=True
        )
    if config.input_bytes:
        return values.round().clamp(0, 255).to(torch.uint8)
    if config.input_range == "0..1":
        return values / 255.0
    return values / 127.5 - 1.0 if config.input_range == "-1..1" else values


def _part(found: Any, output: str) -> Any:
    if not output:
        return found
    try:
        return found[int(output)] if output.isdigit() else found[output]
    except (IndexError, KeyError, TypeError) as error:
        raise UsageError(
            f"features.output={output} is not in what it returned: {_described(found)}",
            "a number chooses from a tuple, a name from a dictionary",
        ) from error


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor {list(found.shape)}"
    if isinstance(found, tuple | list):
        return f"{len(found)} parts ({', '.join(map(_described, found))})"
    return (
        f"a dictionary of {', '.join(map(str, found))}" if isinstance(found, dict) else type(found).__name__
    )


def _pooled(images: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 127.5 - 1.0, CELLS).flatten(1)


def _random_weights() -> list[Features]:  # [C', C, 3, 3] each
    """Return uniform weights that keep the variance through ReLU. Source: He et al. 2015, equation 10."""
    weights, before = [], 3
    for layer, channels in enumerate(CONV_CHANNELS):
        bound = math.sqrt(6.0 / (before * 9))
        numbers = uniforms(channels * before * 9, "random-conv", layer) * (2 * bound) - bound
        weights.append(numbers.reshape(channels, before, 3, 3).astype(np.float32))
        before = channels
    return weights


def _convolved(images: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the channel means behind each of the strided layers: fine structure first, coarse last."""
    values = images.float() / 127.5 - 1.0
    if values.shape[-1] != CONV_PX:
        values = torch.nn.functional.adaptive_avg_pool2d(values, CONV_PX)
    means = []
    for weight in weights:
        values = torch.nn.functional.conv2d(values, weight, stride=2, padding=1).relu()
        means.append(values.mean(dim=(2, 3)))
    return torch.cat(means, dim=1)


def _digest(content: bytes, called: str) -> str:
    return hashlib.sha256(content + called.encode()).hexdigest()


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
