"""Two discriminators in one module: one judges the colours of an image, the other its mask."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from get3d_cluster.get3d.config import DiscriminatorConfig
from get3d_cluster.get3d.mapping import ConditionMapping
from get3d_cluster.get3d.ops import Conv, FullyConnected, downsample, lowered, minibatch_deviation


class Logits(NamedTuple):
    """How real N images look, to each head."""

    rgb: Tensor  # [N]
    mask: Tensor  # [N]


class Discriminator(nn.Module):
    """The pair of heads. They share no weight, and no channel of the image."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.shrink = config.image_size_px // (config.mask_size_px or config.image_size_px)
        self.rgb = Head(config, 3, config.image_size_px)
        self.mask = Head(config, 1, config.image_size_px // self.shrink)

    def forward(
        self,
        image: Tensor,  # [N, 4, H, W] colours in about [-1, 1], mask in [0, 1]
        cameras: Tensor,  # [N, 2] azimuth, polar, radians
        classes: Tensor | None = None,  # [N] int64, if the config has classes
        dtype: torch.dtype | None = None,  # of all that is larger than 4 x 4 px; none: as the weights
        sets: int = 1,  # of equally many images, one behind the other
    ) -> Logits:
        """Judge a batch. Images of a set are compared with each other and with no others."""
        mask = F.avg_pool2d(image[:, 3:], self.shrink) if self.shrink > 1 else image[:, 3:]
        return Logits(
            rgb=self.rgb(image[:, :3], cameras, classes, dtype, sets),
            mask=self.mask(mask, cameras, classes, dtype, sets),
        )


class Head(nn.Module):
    """Blocks down to 4 px, statistics of the batch, and a comparison with the camera. Source: StyleGAN2."""

    def __init__(self, config: DiscriminatorConfig, image_channels: int, size_px: int) -> None:
        super().__init__()
        sizes = [2**k for k in range(size_px.bit_length() - 1, 2, -1)]
        block = SkipBlock if config.architecture == "skip" else ResidualBlock
        self.fir = config.resampling == "fir"
        self.skip = config.architecture == "skip"
        entries = [*sizes, 4] if self.skip else sizes[:1]
        self.entries = nn.ModuleList(
            Conv(image_channels, config.channels_at(r), 1, clamp=config.clamp) for r in entries
        )
        self.blocks = nn.ModuleList(block(config, r) for r in sizes)
        self.last = Last(config)

    def forward(
        self,
        image: Tensor,  # [N, C, H, W]
        cameras: Tensor,  # [N, 2]
        classes: Tensor | None = None,  # [N]
        dtype: torch.dtype | None = None,
        sets: int = 1,
    ) -> Tensor:  # [N]
        image = image.contiguous(memory_format=torch.channels_last)
        x = self._skip_features(image, dtype) if self.skip else self._residual_features(lowered(image, dtype))
        logit: Tensor = self.last(x.to(image.dtype), cameras, classes, sets)
        return logit

    def _skip_features(self, image: Tensor, dtype: torch.dtype | None) -> Tensor:
        x: Tensor = self.entries[0](lowered(image, dtype))
        for block, entry in zip(self.blocks, list(self.entries)[1:], strict=True):
            image = downsample(image, fir=self.fir)
            x = block(x) + entry(lowered(image, dtype))
        return x

    def _residual_features(self, image: Tensor) -> Tensor:
        x: Tensor = self.entries[0](image)
        for block in self.blocks:
            x = block(x)
        return x


class SkipBlock(nn.Module):
    """Two convolutions, the second of which halves the size."""

    def __init__(self, config: DiscriminatorConfig, size_px: int, gain: float = 1.0) -> None:
        super().__init__()
        width, wider = config.channels_at(size_px), config.channels_at(size_px // 2)
        fir = config.resampling == "fir"
        self.same = Conv(width, width, 3, clamp=config.clamp)
        self.down = Conv(width, wider, 3, down=True, fir=fir, clamp=config.clamp, gain=gain)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C', H / 2, W / 2]
        y: Tensor = self.down(self.same(x))
        return y


class ResidualBlock(SkipBlock):
    """Two convolutions beside a 1 x 1 one, averaged so that the variance stays."""

    def __init__(self, config: DiscriminatorConfig, size_px: int) -> None:
        half = math.sqrt(0.5)
        super().__init__(config, size_px, gain=half)
        width, wider = config.channels_at(size_px), config.channels_at(size_px // 2)
        self.fir = config.resampling == "fir"
        self.around = Conv(width, wider, 1, activate=False, bias=False, gain=half)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C', H / 2, W / 2]
        around: Tensor = self.around(downsample(x, fir=self.fir))
        return super().forward(x) + around


class Last(nn.Module):
    """From features of 4 x 4 px to the logit."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels_at(4)
        is_conditional = config.camera_conditioning or config.num_classes > 0
        outputs = config.camera_channels if is_conditional else 1
        self.group = config.minibatch_group
        self.conv = Conv(width + 1, width, 3, clamp=config.clamp)
        self.hidden = FullyConnected(width * 16, width, activate=True)
        self.output = FullyConnected(width, outputs)
        self.camera = _condition(config, outputs) if is_conditional else None

    def forward(
        self,
        x: Tensor,  # [N, C, 4, 4]
        cameras: Tensor,  # [N, 2]
        classes: Tensor | None = None,  # [N]
        sets: int = 1,
    ) -> Tensor:  # [N]
        x = self.conv(minibatch_deviation(x, self.group, sets))
        y: Tensor = self.output(self.hidden(x.flatten(1)))
        if self.camera is None:
            return y[:, 0]
        wanted: Tensor = self.camera(cameras, classes)
        return (y * wanted).sum(dim=1) / math.sqrt(y.shape[1])


def _condition(config: DiscriminatorConfig, channels: int) -> ConditionMapping:
    return ConditionMapping(
        channels, config.camera_mapping, camera=config.camera_conditioning, num_classes=config.num_classes
    )
