"""Shapes to render: signed distances (positive inside, not exact) of a sphere, a car and a chair in the box +-0.5."""

import torch
from torch import Tensor

from get3d_cluster.get3d.raster import Meshes
from get3d_cluster.get3d.tets import bcc_grid, close_boundary, marching_tets


def box(points: Tensor, centre: tuple[float, float, float], half: tuple[float, float, float]) -> Tensor:
    offset = points - torch.tensor(centre).to(points)
    return (torch.tensor(half).to(points) - offset.abs()).amin(dim=-1)


def wheel(points: Tensor, x: float, z: float, radius: float = 0.085, half_width: float = 0.035) -> Tensor:
    along, across = (points[..., 0] - x).abs(), torch.hypot(points[..., 1] + 0.1, points[..., 2] - z)
    return torch.minimum(half_width - along, radius - across)


def union(*parts: Tensor) -> Tensor:
    return torch.stack(parts).amax(dim=0)


def sphere(points: Tensor, radius: float = 0.35) -> Tensor:
    return radius - points.norm(dim=-1)


def car(points: Tensor) -> Tensor:
    """Return a body, a cabin and four wheels, with bumps."""
    body = box(points, (0, -0.03, 0), (0.18, 0.08, 0.42))
    cabin = box(points, (0, 0.1, -0.04), (0.15, 0.08, 0.22))
    wheels = [wheel(points, x, z) for x in (-0.17, 0.17) for z in (-0.26, 0.26)]
    return union(body, cabin, *wheels) + 0.004 * torch.sin(45 * points).sum(dim=-1)


def chair(points: Tensor) -> Tensor:
    """Return a seat, a back and four legs."""
    seat, back = box(points, (0, 0, 0), (0.2, 0.03, 0.2)), box(points, (0, 0.2, -0.18), (0.2, 0.22, 0.03))
    legs = [box(points, (x, -0.2, z), (0.03, 0.22, 0.03)) for x in (-0.165, 0.165) for z in (-0.165, 0.165)]
    return union(seat, back, *legs)


SOLIDS = {"sphere": sphere, "car": car, "chair": chair}


def mesh_of(solid: str, cells: int) -> tuple[Tensor, Tensor]:  # vertices [V, 3], faces [F, 3] int32
    """Return a solid as marching tetrahedra see it: closed, counter-clockwise from outside."""
    return meshes_of(solid, cells).mesh(0)


def meshes_of(solid: str, cells: int) -> Meshes:
    grid = bcc_grid(cells)
    sdf = close_boundary(SOLIDS[solid](grid.vertices)[None], grid)
    return marching_tets(grid.vertices[None], sdf, grid)
