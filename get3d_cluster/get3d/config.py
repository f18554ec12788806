"""Every size and switch of the generator and the discriminator. Pure: a login node reads it without torch.

Every default is upstream's value for cars at 1024 px; whatever departs from upstream is a key to be set.
Sources: Gao et al. 2022 (GET3D), Karras et al. 2020 (StyleGAN2).
"""

from dataclasses import dataclass, field
from typing import Literal

from get3d_cluster.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class MappingConfig:
    """Fully connected layers from a normalised latent (or embedded camera) to a style vector."""

    num_layers: int = 8
    """Fully connected layers."""
    lr_multiplier: float = 0.01
    """Factor on the learning rate of these layers; 0.1 for runs of minutes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkConfig:
    """The convolutions that make the geometry planes and the texture planes, from 4 px up."""

    resolution_px: int = 256
    """Side of the planes; a power of two from 8."""
    plane_channels: int = 32
    """Channels of each of the three geometry planes, and of each of the three texture planes."""
    channel_base: int = 32768
    """Channels at a resolution: min(channel_base / resolution, channel_max)."""
    channel_max: int = 512
    """Most channels at any resolution."""
    channels: tuple[int, ...] = ()
    """Channels at 4, 8, 16, ... px in place of the formula; empty: the formula."""
    noise: bool = True
    """Add one fixed noise image per convolution, scaled by a learned number that starts at 0."""
    resampling: Literal["fir", "bilinear"] = "fir"
    """How to double the size: transposed convolution and FIR [1, 3, 3, 1], or bilinear, then convolution."""
    clamp: float = 0.0
    """Limit the outputs of the convolutions to +-clamp; 0: no limit. Upstream uses 256 with its --fp32=0."""

    def __post_init__(self) -> None:
        _check_power_of_two("resolution_px", self.resolution_px, 8)
        _check_channels("channels", self.channels, self.resolution_px)

    def channels_at(self, resolution_px: int) -> int:
        """Return the channels of the feature maps of one resolution."""
        return _channels_at(resolution_px, self.channels, self.channel_base, self.channel_max)


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeConfig:
    """The convolutions that make a volume of features for the distances, and one for the deformations."""

    resolution: int = 32
    """Cells along a side; a power of two from 8."""
    channel_base: int = 2048
    """Channels at a resolution: min(channel_base / resolution, channel_max)."""
    channel_max: int = 256
    """Most channels at any resolution."""
    hidden_channels: int = 256
    """Width of the hidden layers of both networks that read the volumes."""
    sdf_hidden: int = 3
    """Hidden layers of the distance's network."""
    deformation_hidden: int = 2
    """Hidden layers of the deformation's network."""

    def __post_init__(self) -> None:
        _check_power_of_two("resolution", self.resolution, 8)

    @property
    def sides(self) -> list[int]:
        """Resolutions from 4 up."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    @property
    def num_convs(self) -> int:
        """Modulated convolutions of one volume."""
        return 2 * len(self.sides) - 1

    def channels_at(self, side: int) -> int:
        """Return the channels of the volume of one resolution."""
        return min(self.channel_base // side, self.channel_max)


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldsConfig:
    """The small networks that turn plane features into distance, deformation and texture."""

    hidden_channels: int = 32
    """Width of the hidden layers."""
    num_hidden: int = 1
    """Hidden layers of each network."""
    texture_channels: int = 16
    """Features of a surface point that the last layer turns into a colour."""
    demodulate_geometry: bool = True
    """Demodulate the last layer of distance and deformation too; off: scaled by 1/sqrt(inputs) instead."""
    sdf_gain: float = 1.0
    """Factor on what the distance network says; 0.1 together with a sphere to start from."""
    sphere_gain: float = 0.0
    """Add sphere_gain * (sphere_radius - distance to the origin) to the distance; 0: start from noise."""
    sphere_radius: float = 0.3
    """Radius of that sphere, in world units."""
    background: float = 0.0
    """Colour of the background at the start: first bias of the colour layer; -1 is black."""
    fixed_background: bool = False
    """Keep the background at that colour. Off, it is the colour layer's bias and has to be learned, as upstream's."""
    palette: bool = False
    """Mix the colours of a shape from texture_channels colours: shares of its own paint, and what is common to all
    shapes (not upstream's). Off: each channel adds a colour of its own, which the style makes stronger or weaker."""

    def __post_init__(self) -> None:
        if self.palette and self.texture_channels < 2:
            raise UsageError(
                f"texture_channels={self.texture_channels} leaves a palette nothing to mix",
                "Set texture_channels to the number of colours of a shape, 2 or more.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """The fixed grid whose distances become a mesh."""

    kind: Literal["dmtet", "flexicubes"] = "dmtet"
    """Marching tetrahedra, or dual marching cubes with learned weights (give those 90 cells, max_deformation 0.5)."""
    cells: int = 36
    """Cells along a side, even; 36 has as many vertices as upstream's tet_res 90, 12 suits 64 px images."""
    tet_res: int = 0
    """Upstream's name for the resolution (64, 70, 80, 90, 100), used in place of cells; 0: use cells."""
    scale: float = 1.0
    """Side of the grid in world units; 0.8 for chairs and tables."""
    max_deformation: float = 0.4
    """Farthest a vertex moves along an axis, times cells, in world units; 0.4 is upstream's 1/90 on 36 cells.
    Below 0.2 in length no tetrahedron can turn over: those at the boundary are 0.41 cells wide."""
    close_boundary: bool = False
    """Force the distance at the boundary to be outside, so that every mesh is closed in training too."""

    def __post_init__(self) -> None:
        if self.tet_res and self.tet_res < 5:
            raise UsageError(f"tet_res={self.tet_res} is below 5", "Set tet_res=90, or tet_res=0 and cells.")
        if self.cells < 2 or self.cells % 2:
            raise UsageError(
                f"cells={self.cells} has to be even: odd grids are not mirror-symmetric",
                f"Set cells={max(2, self.cells + 1)}.",
            )

    @property
    def num_cells(self) -> int:
        """Cells along a side, whichever key named them (two fifths of ``tet_res``, made even; of cubes, as many).

        Upstream's tetrahedral grids have vertices about 2 / tet_res apart; ours 1 / cells and 0.87 / cells.
        """
        if self.tet_res and self.kind == "flexicubes":
            return 2 * round(self.tet_res / 2)
        return max(2, 2 * round(self.tet_res / 5)) if self.tet_res else self.cells


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderConfig:
    """The camera and the image that the generator is trained on."""

    image_size_px: int = 1024
    """Side of the rendered image."""
    radius: float = 1.2
    """Distance of the camera from the origin, which it looks at, in world units."""
    fov_deg: float = 49.13434264120263
    """Full field of view of the square image: 2 atan(16 / 35), a 35 mm lens on a 32 mm sensor."""
    antialias: Literal["walk", "standard"] = "walk"
    """How silhouette edges are found; `standard` is upstream's, which loses most of the mask's gradient."""
    rasterizer: Literal["auto", "numba", "torch", "nvdiffrast"] = "auto"
    """What finds visible triangles; auto: numba on the CPU, torch on CUDA. nvdiffrast: to be installed, CUDA only."""
    antialias_rgb: bool = False
    """Antialias the colours as well, without a gradient to the shape; needed at 64 px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    """From two latents to a textured mesh and its image."""

    kind: Literal["unified", "separate"] = "unified"
    """One trunk of planes for geometry and texture, or volumes for the geometry and planes for the texture: the main
    text of the paper. Each has its own weights; neither reads a checkpoint of the other."""
    latent_channels: int = 512
    """Size of a latent and of a style vector (z and w)."""
    classes: tuple[str, ...] = ()
    """Synsets that shapes are made of on demand, such as ["02958343", "03001627"]; empty: shapes have no class."""
    mapping: MappingConfig = field(default_factory=MappingConfig)
    """From latent to style, one network for geometry and one for texture."""
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    """The planes."""
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    """The volumes, with kind=separate."""
    mirror_x: bool = False
    """Make every shape its own mirror image, left and right of x = 0: for cars (not upstream's)."""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    """Distance, deformation and texture."""
    grid: GridConfig = field(default_factory=GridConfig)
    """The tetrahedral grid."""
    render: RenderConfig = field(default_factory=RenderConfig)
    """The camera and the image."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise UsageError(f"classes={list(self.classes)} names a class twice", "Name each synset once.")
        if self.mirror_x and self.grid.kind == "flexicubes":
            raise UsageError(
                "grid.kind=flexicubes has weights that know left from right: it does not go with mirror_x=true",
                "Set mirror_x=false, or grid.kind=dmtet.",
            )
        if self.kind == "separate" and (self.mirror_x or self.grid.kind == "flexicubes"):
            raise UsageError(
                "kind=separate has no geometry planes, which mirror_x=true and grid.kind=flexicubes read",
                "Set mirror_x=false and grid.kind=dmtet, or kind=unified.",
            )

    @property
    def num_ws_geo(self) -> int:
        """Slots of the geometry style: each convolution and geometry output, each layer of a field.

        Of separate trunks: those of the distance, then those of the deformation.
        """
        if self.kind == "separate":
            return self.num_ws_sdf + self.volume.num_convs + self.volume.deformation_hidden + 1
        return 3 * _num_doublings(self.trunk.resolution_px) + 2 + self.fields.num_hidden + 1

    @property
    def num_ws_tex(self) -> int:
        """Slots of the texture style: each texture output of the trunk, each layer of the field.

        Of separate trunks: each convolution, too.
        """
        if self.kind == "separate":
            return 3 * _num_doublings(self.trunk.resolution_px) + 2 + self.fields.num_hidden + 1
        return _num_doublings(self.trunk.resolution_px) + 1 + self.fields.num_hidden + 1

    @property
    def num_ws_sdf(self) -> int:
        """Slots of the distance among those of the geometry, with kind=separate."""
        return self.volume.num_convs + self.volume.sdf_hidden + 1

    @property
    def num_noise(self) -> int:
        """Pixels of noise that a sample of the training gets: with kind=separate, as upstream; else noise is fixed."""
        if self.kind == "unified" or not self.trunk.noise:
            return 0
        larger = [4 << k for k in range(1, _num_doublings(self.trunk.resolution_px) + 1)]
        return 16 + 2 * sum(side**2 for side in larger)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig:
    """Two discriminators of equal widths: one sees the colours, the other the mask."""

    image_size_px: int = 1024
    """Side of the images; a power of two from 8, equal to the generator's."""
    mask_size_px: int = 0
    """Average the mask down to this side before it is judged; 0: the full image."""
    architecture: Literal["skip", "resnet"] = "skip"
    """How the image enters: added at every resolution, or once, followed by residual blocks."""
    channel_base: int = 32768
    """Channels at a resolution: min(channel_base / resolution, channel_max)."""
    channel_max: int = 512
    """Most channels at any resolution."""
    channels: tuple[int, ...] = ()
    """Channels at 4, 8, 16, ... px in place of the formula; empty: the formula."""
    resampling: Literal["fir", "average"] = "fir"
    """How to halve the size: FIR filter [1, 3, 3, 1], or the mean of 2 x 2 pixels."""
    clamp: float = 0.0
    """Limit the outputs of the convolutions to +-clamp; 0: no limit. Upstream uses 256 with its --fp32=0."""
    minibatch_group: int = 4
    """Images that are compared with each other; a batch is one group or a multiple of it."""
    camera_conditioning: bool = True
    """Judge an image together with the camera it was taken with."""
    num_classes: int = 0
    """Judge an image together with its class: as many as generator.classes names; 0: without."""
    camera_channels: int = 512
    """Size of the embedded camera, or camera and class."""
    camera_mapping: MappingConfig = field(default_factory=MappingConfig)
    """From embedded camera and class to the vector the image features are compared with."""

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise UsageError(f"num_classes={self.num_classes} is negative", "Set num_classes to 0 or more.")
        _check_power_of_two("image_size_px", self.image_size_px, 8)
        _check_channels("channels", self.channels, self.image_size_px)
        if self.mask_size_px:
            _check_power_of_two("mask_size_px", self.mask_size_px, 8)
        if self.mask_size_px > self.image_size_px:
            raise UsageError(
                f"mask_size_px={self.mask_size_px} is larger than image_size_px={self.image_size_px}",
                f"Set mask_size_px to a power of two up to {self.image_size_px}.",
            )

    def channels_at(self, resolution_px: int) -> int:
        """Return the channels of the feature maps of one resolution."""
        return _channels_at(resolution_px, self.channels, self.channel_base, self.channel_max)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Both networks."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """From two latents to a textured mesh and its image."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Tells real images from generated ones."""

    def __post_init__(self) -> None:
        made, judged = self.generator.render.image_size_px, self.discriminator.image_size_px
        if made != judged:
            raise UsageError(
                f"generator.render.image_size_px={made} differs from discriminator.image_size_px={judged}",
                "Give both the size of the images of the dataset.",
            )
        named, told = len(self.generator.classes), self.discriminator.num_classes
        if named != told:
            raise UsageError(
                f"generator.classes names {named} classes, discriminator.num_classes={told}",
                f"Set discriminator.num_classes={named}, or generator.classes to {told} synsets.",
            )


def _channels_at(resolution_px: int, channels: tuple[int, ...], base: int, most: int) -> int:
    return channels[_num_doublings(resolution_px)] if channels else min(base // resolution_px, most)


def _num_doublings(resolution_px: int) -> int:
    """Return how often 4 px are doubled to reach ``resolution_px``."""
    return resolution_px.bit_length() - 3


def _check_power_of_two(name: str, value: int, least: int) -> None:
    if value < least or value & (value - 1):
        raise UsageError(
            f"{name}={value} is not a power of two from {least}", f"Set {name} to {least}, {2 * least}, ..."
        )


def _check_channels(name: str, channels: tuple[int, ...], resolution_px: int) -> None:
    wanted = _num_doublings(resolution_px) + 1
    if channels and len(channels) != wanted:
        raise UsageError(
            f"{name} has {len(channels)} values, but 4 to {resolution_px} px are {wanted} resolutions",
            f"Give {wanted} values, from 4 px up, or leave {name} empty.",
        )
