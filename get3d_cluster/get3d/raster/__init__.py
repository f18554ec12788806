"""Differentiable rasterizer: exact visibility (numba or torch), everything else ordinary torch."""

from get3d_cluster.get3d.raster.antialias import Blends, antialias, blend, blends
from get3d_cluster.get3d.raster.backends import choose_backend
from get3d_cluster.get3d.raster.fragments import Fragments, barycentrics, fragments, interpolate, to_image
from get3d_cluster.get3d.raster.meshes import Meshes, pack
from get3d_cluster.get3d.raster.surface import Surface, render_meshes, render_surface
from get3d_cluster.get3d.raster.topology import Topology, topology
from get3d_cluster.get3d.raster.visibility import visibility

__all__ = [
    "Blends",
    "Fragments",
    "Meshes",
    "Surface",
    "Topology",
    "antialias",
    "barycentrics",
    "blend",
    "blends",
    "choose_backend",
    "fragments",
    "interpolate",
    "pack",
    "render_meshes",
    "render_surface",
    "to_image",
    "topology",
    "visibility",
]
