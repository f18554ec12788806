"""From two latents to textured meshes and their images: the unified generator of GET3D.

Shapes: N samples, W style channels, V grid vertices, K views, H and W pixels, P points.
The look-up of the texture sees positions without their gradient. So colours teach the planes and the texture, never the
shape; the shape learns from the mask alone (Gao et al. 2022, the published training's behaviour).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from get3d_cluster.get3d import mapping, raster, tets
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.config import FieldsConfig, GeneratorConfig
from get3d_cluster.get3d.extraction import Weigh, Weights
from get3d_cluster.get3d.fields import (
    Field,
    Palette,
    lattice_coordinates,
    lattice_features,
    lattice_matrix,
    point_features,
)
from get3d_cluster.get3d.flexicubes import NUM_WEIGHTS, CubeGrid, cube_grid, squashed
from get3d_cluster.get3d.mapping import Latents, Mapping
from get3d_cluster.get3d.ops import ModulatedLinear, lowered
from get3d_cluster.get3d.raster import Meshes, Surface
from get3d_cluster.get3d.raster.antialias import blend
from get3d_cluster.get3d.separate import TextureTrunk, VolumeField, corner_aligned, position_features
from get3d_cluster.get3d.synthesis import Planes, Trunk
from get3d_cluster.get3d.tets import TetGrid

W_AVG_BETA = 0.998
_COLOUR_LIMIT = 256.0
_WEIGHT_GAIN = 0.1
"""Of what the weights' network says: they begin near 1. Source: the published training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """The geometry of N samples, and the planes that their texture is read from."""

    planes: Planes
    sdf: Tensor  # [N, V] positive inside, as the meshes were made from
    deformation: Tensor  # [N, V, 3] world
    meshes: Meshes
    penalty: Tensor  # [N] mean |sdf| of a sample that had no surface, else 0
    sdf_entropy: Tensor  # how undecided the signs are along edges, mean over the batch
    deviation: Tensor  # how irregular the patches of FlexiCubes are, mean over the batch; else 0
    weights_square: Tensor  # mean square of the weights of FlexiCubes; else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """Images of N samples and what they were made from."""

    image: Tensor  # [N, 4, H, W] (or [N, K, 4, H, W]): colours in about [-1, 1], mask in [0, 1]; row 0 is the top
    shapes: Shapes


class Generator(nn.Module):
    """Mapping networks, trunk, fields and renderer."""

    w_avg_geo: Tensor  # [W]
    w_avg_tex: Tensor  # [W]
    lattice: Tensor  # [2 cells + 1, R]
    grid_vertices: Tensor  # [V, 3] world, before deformation
    grid_tets: Tensor
    grid_edges: Tensor
    grid_tet_edges: Tensor
    grid_boundary: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype: torch.dtype | None = None
        """In which the trunk's convolutions and the texture's field compute; none: as the weights. Styles, distances,
        deformations, meshes and all that is drawn of them are always as the weights."""
        style, fields, features = config.latent_channels, config.fields, config.trunk.plane_channels
        self.mapping_geo = Mapping(style, config.mapping, len(config.classes))
        self.mapping_tex = Mapping(style, config.mapping, len(config.classes))
        widths = [features, *[fields.hidden_channels] * fields.num_hidden]
        demodulate = fields.demodulate_geometry
        if config.kind == "separate":
            volume = config.volume
            self.texture_trunk = TextureTrunk(config.trunk, 2 * style)
            self.sdf_volume = VolumeField(volume, volume.sdf_hidden, 1, style, demodulate=demodulate)
            self.deformation_volume = VolumeField(
                volume, volume.deformation_hidden, 3, style, demodulate=demodulate
            )
            self.texture_field = Field([*widths, fields.texture_channels], 2 * style)
        else:
            self.trunk = Trunk(config.trunk, style)
            self.sdf_field = Field([*widths, 1], style, demodulate_output=demodulate)
            self.deformation_field = Field([*widths, 3], style, demodulate_output=demodulate)
            self.texture_field = Field([*widths, fields.texture_channels], style)
        self.colour = _colour_layer(fields, style)
        if config.grid.kind == "flexicubes":
            cube_widths = [8 * features, *widths[1:], NUM_WEIGHTS]
            self.weight_field = Field(cube_widths, style, demodulate_output=demodulate)
        self.register_buffer("w_avg_geo", torch.zeros(style))
        self.register_buffer("w_avg_tex", torch.zeros(style))
        self._register_grid()

    def _register_grid(self) -> None:
        """Keep the grid as buffers, which follow the module to its device; a function of the config, not saved."""
        cells, scale = self.config.grid.num_cells, self.config.grid.scale
        with torch.device("cpu"):
            is_cubic = self.config.grid.kind == "flexicubes"
            grid = cube_grid(cells) if is_cubic else tets.bcc_grid(cells)
            lattice = self._lattice(cells)
            lattice = lattice[: cells + 1] if is_cubic else lattice
        self._grid_centre = grid.centre
        self.register_buffer("lattice", lattice, persistent=False)
        self.register_buffer("grid_vertices", grid.vertices * scale, persistent=False)
        for name in ("edges", "boundary") if is_cubic else ("tets", "edges", "tet_edges", "boundary"):
            self.register_buffer(f"grid_{name}", getattr(grid, name), persistent=False)

    def _lattice(self, cells: int) -> Tensor:  # [2 cells + 1, R]
        if self.config.kind == "unified":
            return lattice_matrix(cells, self.config.trunk.resolution_px)
        return corner_aligned(lattice_coordinates(cells), self.config.volume.resolution).float()

    @property
    def grid(self) -> TetGrid | CubeGrid:
        """The grid, on the module's device, in world units."""
        if self.config.grid.kind == "flexicubes":
            return CubeGrid(
                cells=self.config.grid.num_cells,
                centre=self._grid_centre,
                vertices=self.grid_vertices,
                edges=self.grid_edges,
                boundary=self.grid_boundary,
            )
        return TetGrid(
            cells=self.config.grid.num_cells,
            centre=self._grid_centre,
            vertices=self.grid_vertices,
            tets=self.grid_tets,
            edges=self.grid_edges,
            tet_edges=self.grid_tet_edges,
            boundary=self.grid_boundary,
        )

    # Styles

    def map(
        self,
        z_geo: Tensor,  # [N, W] standard normal
        z_tex: Tensor,  # [N, W] standard normal
        classes: Tensor | None = None,  # [N] int64 into config.classes, if there are any
    ) -> Latents:
        """Map latents to styles, the same vector for each slot. No side effect.

        Raises: ValueError if the config has classes and none are given.
        """
        geo, tex = self.mapping_geo(z_geo, classes), self.mapping_tex(z_tex, classes)
        return Latents(
            geo=geo[:, None].expand(-1, self.config.num_ws_geo, -1),
            tex=tex[:, None].expand(-1, self.config.num_ws_tex, -1),
        )

    def mix(self, a: Latents, b: Latents, cut_geo: int | None, cut_tex: int | None) -> Latents:
        """Take the slots below each cut from ``a`` and the others from ``b``; no cut: all from ``a``."""
        return mapping.mix(a, b, cut_geo, cut_tex)

    def truncate(self, latents: Latents, psi: float) -> Latents:
        """Move styles towards their running means: all the way for psi 0, not at all for psi 1."""
        return replace(
            latents,
            geo=mapping.truncate(latents.geo, self.w_avg_geo, psi),
            tex=mapping.truncate(latents.tex, self.w_avg_tex, psi),
        )

    def w_mean(self, latents: Latents) -> Tensor:  # [2 W] geometry, texture
        """Return the mean style of a batch, taken from the first slot: what mixing leaves alone."""
        return torch.cat([latents.geo[:, 0].mean(dim=0), latents.tex[:, 0].mean(dim=0)]).detach()

    @torch.no_grad()
    def update_w_avg(self, mean: Tensor, beta: float = W_AVG_BETA) -> None:
        """Move the running means towards the mean style of a batch; ``beta`` 0 replaces them."""
        for average, fresh in zip((self.w_avg_geo, self.w_avg_tex), mean.chunk(2), strict=True):
            average.copy_(fresh.lerp(average, beta))

    # Geometry

    def planes(self, latents: Latents) -> Planes:
        """Compute the planes: most of the work, needed once for all views of a shape."""
        if self.config.kind == "separate":
            texture = self.texture_trunk(self._texture_styles(latents), latents.noise, self.dtype)
            return Planes(geo=texture[..., :0], tex=texture)
        planes: Planes = self.trunk(latents, self.dtype)
        return planes.mirrored() if self.config.mirror_x else planes

    def shapes(self, latents: Latents, *, closed: bool = False) -> Shapes:
        """Compute planes, distances and meshes; ``closed`` forces the box's boundary outside."""
        planes = self.planes(latents)
        sdf, deformation, weigh = self._geometry(planes, latents)
        sdf, deformation, penalty = tets.repair_empty(sdf, deformation, self.grid)
        if closed or self.config.grid.close_boundary:
            sdf = tets.close_boundary(sdf, self.grid)
        extracted = self.grid.extract(self.grid_vertices + deformation, sdf, weigh, in_four=self.training)
        return Shapes(
            planes=planes,
            sdf=sdf,
            deformation=deformation,
            meshes=extracted.meshes,
            penalty=penalty,
            sdf_entropy=tets.sdf_entropy(sdf, self.grid_edges),
            deviation=extracted.deviation,
            weights_square=extracted.weights_square,
        )

    def meshes(self, latents: Latents) -> list[tuple[Tensor, Tensor]]:
        """Return closed surfaces: vertices [V, 3] in world units and faces [F, 3], for each sample."""
        packed = self.shapes(latents, closed=True).meshes
        return [packed.mesh(i) for i in range(len(packed))]

    def _geometry(
        self, planes: Planes, latents: Latents
    ) -> tuple[Tensor, Tensor, Weigh | None]:  # [N, V], [N, V, 3]
        config, grid = self.config.fields, self.config.grid
        ws = latents.geo[:, -(config.num_hidden + 1) :]
        if self.config.kind == "separate":
            features = planes.geo
            raw_sdf, raw = self._volumes(latents)
        else:
            features = lattice_features(planes.geo, self.lattice, grid.num_cells)
            raw_sdf = self.sdf_field.evaluate(features, self.sdf_field.matrices(ws))
            raw = self.deformation_field.evaluate(features, self.deformation_field.matrices(ws))
        sdf = raw_sdf[:, :, 0] * config.sdf_gain
        if config.sphere_gain:
            sdf = sdf + config.sphere_gain * (config.sphere_radius - self.grid_vertices.norm(dim=1))
        deformation = torch.tanh(raw) * (grid.max_deformation / grid.num_cells)
        deformation = deformation * self._directions() if self.config.mirror_x else deformation
        return sdf, deformation, self._weigh(features, ws) if grid.kind == "flexicubes" else None

    def _volumes(self, latents: Latents) -> tuple[Tensor, Tensor]:  # [N, V, 1], [N, V, 3]
        """Return what the two volumes say of the grid's vertices."""
        cells, cut = self.config.grid.num_cells, self.config.num_ws_sdf
        lattices = [self.lattice[: cells + 1], self.lattice[cells + 1 :]]
        positions = position_features(self.grid_vertices * (2 / self.config.grid.scale))
        sdf: Tensor = self.sdf_volume(latents.geo[:, :cut], lattices, positions)
        raw: Tensor = self.deformation_volume(latents.geo[:, cut:], lattices, positions)
        return sdf, raw

    def _texture_styles(self, latents: Latents) -> Tensor:  # [N, num_ws_tex, S or 2 S]
        """Return what modulates the texture: of separate trunks the geometry's style, too, its last slot repeated."""
        if self.config.kind == "unified":
            return latents.tex
        count = latents.tex.shape[1]
        missing = max(0, count - latents.geo.shape[1])
        geo = torch.cat([latents.geo, latents.geo[:, -1:].expand(-1, missing, -1)], dim=1)
        return torch.cat([latents.tex, geo[:, :count]], dim=2)

    def _weigh(
        self,
        features: Tensor,  # [N, V, C]
        ws: Tensor,  # [N, layers, S]
    ) -> Weigh:
        """Return what tells the weights of cubes from the features of their corners.

        Upstream computes them for all cubes of the grid; those that no surface cuts decide nothing but a mean square.
        """
        matrices = self.weight_field.matrices(ws)

        def weigh(sample: Tensor, corners: Tensor) -> Weights:  # [A], [A, 8]
            vertex = (sample[:, None] * features.shape[1] + corners).flatten()
            x = features.flatten(0, 1).index_select(0, vertex).view(len(sample), -1)
            raw = [
                self.weight_field.evaluate(own[None], [matrix[i : i + 1] for matrix in matrices])[0]
                for i, own in enumerate(x.split(_counts(sample, len(features))))
            ]
            return squashed(torch.cat(raw) * _WEIGHT_GAIN)

        return weigh

    def _directions(self) -> Tensor:  # [V, 3]
        """Return how a mirrored field moves vertices: away from the plane x = 0 on either side, and never off it."""
        x = self.grid_vertices[:, :1].sign()
        return torch.cat([x, torch.ones_like(x), torch.ones_like(x)], dim=1)

    # Appearance

    def colours(
        self,
        planes: Planes,
        latents: Latents,
        sample_index: Tensor,  # [P] int64, never decreasing: whose point it is
        points: Tensor,  # [P, 3] world
    ) -> Tensor:  # [P, 3] about [-1, 1]
        """Return the texture at points, without a gradient to their position.

        Raises: ValueError if ``sample_index`` decreases somewhere.
        """
        if (sample_index.diff() < 0).any():
            raise ValueError("sample_index must never decrease: sort the points by sample")
        return self._limit(self._tints(planes, latents, sample_index, points) + self.colour.bias)

    @property
    def background(self) -> Tensor:  # [3] about [-1, 1]
        """The colour of pixels without a surface: learned, or as the config fixes it."""
        bias: Tensor = self.colour.bias
        fields = self.config.fields
        return torch.full_like(bias, fields.background).detach() if fields.fixed_background else bias

    def _tints(
        self, planes: Planes, latents: Latents, sample_index: Tensor, points: Tensor
    ) -> Tensor:  # [P, 3]
        """Return how points differ from the background."""
        ws = self._texture_styles(latents)[:, -(self.config.fields.num_hidden + 1) :]
        field, colour = self.texture_field.matrices(ws), self.colour.matrices(latents.tex[:, -1])
        places = (points.detach() * (2 / self.config.grid.scale)).clamp(-1, 1)
        tints = []
        for i, own in enumerate(places.split(_counts(sample_index, len(colour)))):
            features = lowered(point_features(planes.tex[i], own)[None], self.dtype)
            texture = self.texture_field.evaluate(features, [matrix[i : i + 1] for matrix in field])
            tints.append(self._tint(texture[0].to(colour.dtype), colour[i]))
        return torch.cat(tints)

    def _tint(self, texture: Tensor, colour: Tensor) -> Tensor:  # [P, K], [K, 3] -> [P, 3]
        return self.colour.tints(texture, colour) if isinstance(self.colour, Palette) else texture @ colour

    def _limit(self, colours: Tensor) -> Tensor:
        return colours.clamp(-_COLOUR_LIMIT, _COLOUR_LIMIT)

    # Images

    def render(
        self,
        latents: Latents,
        cameras: Tensor,  # [N, 2] azimuth, polar, radians
        image_size_px: int | None = None,
    ) -> Rendered:
        """Render each sample from its own camera."""
        shapes = self.shapes(latents)
        return Rendered(image=self.image(shapes, latents, cameras, image_size_px), shapes=shapes)

    def render_views(
        self,
        latents: Latents,
        cameras: Tensor,  # [N, K, 2] azimuth, polar, radians
        image_size_px: int | None = None,
    ) -> Rendered:
        """Render each sample from K cameras; planes and meshes are computed once."""
        shapes = self.shapes(latents)
        views = [self.image(shapes, latents, view, image_size_px) for view in cameras.unbind(1)]
        return Rendered(image=torch.stack(views, dim=1), shapes=shapes)

    def image(
        self,
        shapes: Shapes,
        latents: Latents,
        cameras: Tensor,  # [N, 2]
        image_size_px: int | None = None,
    ) -> Tensor:  # [N, 4, H, W]
        """Render shapes that were computed before, each from one camera."""
        surface = self._surface(shapes, cameras, image_size_px or self.config.render.image_size_px)
        tints = self._tints(shapes.planes, latents, surface.frag.batch, surface.position)
        if self.config.fields.fixed_background:
            tints = tints + (self.colour.bias - self.background)
        rgb = self._limit(raster.to_image(surface.frag, tints) + self.background)
        if self.config.render.antialias_rgb:
            rgb = blend(rgb, surface.blends.detach())
        return torch.cat([rgb, surface.soft], dim=3).permute(0, 3, 1, 2)

    def _surface(self, shapes: Shapes, cameras: Tensor, size_px: int) -> Surface:
        config = self.config.render
        matrices = clip_matrices(cameras[:, 0], cameras[:, 1], radius=config.radius, fov_deg=config.fov_deg)
        size, mode, backend = (size_px, size_px), config.antialias, config.rasterizer
        return raster.render_meshes(shapes.meshes, matrices, size, mode=mode, backend=backend)


def _colour_layer(fields: FieldsConfig, style_channels: int) -> Palette | ModulatedLinear:
    if fields.palette:
        return Palette(fields.texture_channels, style_channels, fields.background)
    return ModulatedLinear(
        fields.texture_channels, 3, style_channels, demodulate=False, bias_init=fields.background
    )


def _counts(sample_index: Tensor, num_samples: int) -> list[int]:
    """Return how many points each sample has."""
    bounds = torch.arange(num_samples + 1, device=sample_index.device)
    ends = torch.searchsorted(sample_index.contiguous(), bounds)
    counts: list[int] = ends.diff().tolist()
    return counts
