"""Cameras of GET3D: on a sphere around the origin, always looking at it, +Y up.

World: right-handed, Y up. Camera: OpenGL style, looks down -Z. Clip space: x, y, z over w in [-1, 1], z/w
grows away from the viewer. The projection negates y, so **row 0 of every image is its top row**; nothing else
in the project flips. Axes: N cameras.
"""

import math

import torch
from torch import Tensor

RADIUS = 1.2
"""Distance of the camera from the origin, world units."""

FOV_DEG = math.degrees(2.0 * math.atan(16.0 / 35.0))
"""Full opening angle, degrees (49.13): a 35 mm lens before a sensor of 32 mm."""

NEAR = 0.1
FAR = 1000.0


def camera_position(
    azimuth_rad: Tensor,  # [N] about +Y; 0 looks from -Z, pi/2 from -X
    polar_rad: Tensor,  # [N] from +Y; elevation is pi/2 minus this
    radius: float = RADIUS,
) -> Tensor:  # [N, 3] world
    """Return where cameras stand."""
    away = torch.sin(polar_rad)
    return radius * torch.stack(
        [-away * torch.sin(azimuth_rad), torch.cos(polar_rad), -away * torch.cos(azimuth_rad)], dim=-1
    )


def world_to_camera(
    azimuth_rad: Tensor,  # [N]
    polar_rad: Tensor,  # [N]
    radius: float = RADIUS,
) -> Tensor:  # [N, 4, 4]
    """Return the rigid motions that put a camera at the origin, looking down -Z.

    The right vector is taken from the azimuth rather than from a cross product with +Y, so a camera straight
    above the object (polar 0) is as good as any other.
    """
    back = camera_position(azimuth_rad, polar_rad, 1.0)
    right = torch.stack(
        [-torch.cos(azimuth_rad), torch.zeros_like(azimuth_rad), torch.sin(azimuth_rad)], dim=-1
    )
    rotation = torch.stack([right, torch.linalg.cross(back, right), back], dim=-2)
    motion = torch.zeros(*azimuth_rad.shape, 4, 4, dtype=rotation.dtype, device=rotation.device)
    motion[..., :3, :3] = rotation
    motion[..., 2, 3] = -radius  # the origin lies straight ahead
    motion[..., 3, 3] = 1.0
    return motion


def projection(fov_deg: float = FOV_DEG, *, near: float = NEAR, far: float = FAR) -> Tensor:
    """Return the [4, 4] float64 perspective matrix of a square image, y negated so that row 0 is the top.

    Raises: ValueError if the angle or the planes make no frustum.
    """
    if not 0.0 < fov_deg < 180.0:
        raise ValueError(f"fov_deg={fov_deg} must lie between 0 and 180")
    if not 0.0 < near < far:
        raise ValueError(f"near={near} must be positive and below far={far}")
    focal = 1.0 / math.tan(math.radians(fov_deg) / 2.0)
    return torch.tensor(
        [
            [focal, 0.0, 0.0, 0.0],
            [0.0, -focal, 0.0, 0.0],
            [0.0, 0.0, -(far + near) / (far - near), -2.0 * far * near / (far - near)],
            [0.0, 0.0, -1.0, 0.0],
        ],
        dtype=torch.float64,
    )


def clip_matrices(
    azimuth_rad: Tensor,  # [N]
    polar_rad: Tensor,  # [N]
    *,
    radius: float = RADIUS,
    fov_deg: float = FOV_DEG,
) -> Tensor:  # [N, 4, 4] world to clip, dtype and device of the angles
    """Return world-to-clip matrices; computed in float64, rounded once at the end."""
    motion = world_to_camera(azimuth_rad.double(), polar_rad.double(), radius)
    # Sums written out: a matrix product may order them differently for another N, and with it the last bit.
    lens = projection(fov_deg).to(motion.device)
    product = (lens[..., :, :, None] * motion[..., None, :, :]).sum(dim=-2)
    return product.to(azimuth_rad.dtype)
