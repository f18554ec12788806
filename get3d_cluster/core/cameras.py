"""Where the cameras stand: one set of conventions for Blender, the dataset and the trainer. Pure.

A view is (rotation, elevation) in degrees, on a sphere around the origin, looking at it. Two spaces:
  trainer and OBJ files: Y up, right-handed; Blender: Z up. The importer maps (x, y, z) to (x, -z, y).
The trainer's condition is (azimuth, polar) in radians: azimuth = rotation, polar = 90 degrees - elevation,
measured from +Y.
"""

from dataclasses import dataclass
from math import atan, ceil, cos, radians, sin, tan

from get3d_cluster.core.philox import Phase, key_of, uniform, words

RADIUS = 1.2
"""Distance of every camera from the origin. Source: GET3D, supplement, data rendering."""
FOV_RAD = 2 * atan(16 / 35)
"""Full field of view, both axes: a 35 mm lens before a 32 mm sensor, 49.13 degrees."""
NEAR = 0.1
ELEVATION_RANGE_DEG = (0.0, 30.0)

Vector = tuple[float, float, float]
Row = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One camera of one model."""

    rotation_deg: float
    """Around the up axis, in [0, 360)."""
    elevation_deg: float
    """Above the horizon."""


def views_for(
    seed: int,
    synset: str,
    model: str,
    num_views: int,
    elevation_range_deg: tuple[float, float] = ELEVATION_RANGE_DEG,
) -> list[View]:
    """Draw the cameras of a model: uniform in both angles, a function of (seed, synset, model, view) alone.

    More views begin with the same ones.

    Raises: ValueError if the range is not ordered or leaves [-90, 90].
    """
    low, high = elevation_range_deg
    if not -90 <= low <= high <= 90:
        raise ValueError(f"elevation_range_deg={elevation_range_deg} must be ordered and within [-90, 90]")
    key = key_of(str(seed), synset, model)
    return [_drawn(key, view, low, high) for view in range(num_views)]


def camera_position(rotation_deg: float, elevation_deg: float, radius: float = RADIUS) -> Vector:
    """Return the camera's place in trainer and OBJ space (Y up)."""
    x, y, z = blender_position(rotation_deg, elevation_deg, radius)
    return x, z, -y


def blender_position(rotation_deg: float, elevation_deg: float, radius: float = RADIUS) -> Vector:
    """Return the camera's place in Blender's space (Z up)."""
    rotation, elevation = radians(rotation_deg), radians(elevation_deg)
    across = radius * cos(elevation)
    return -across * sin(rotation), across * cos(rotation), radius * sin(elevation)


def cam_to_world(
    rotation_deg: float, elevation_deg: float, radius: float = RADIUS
) -> tuple[Row, Row, Row, Row]:
    """Return the rows of the 4x4 camera pose in Blender's space (Z up), as ``transforms.json`` holds it.

    OpenGL axes: +X right, +Y up, the camera looks along its -Z. Written from the angles, so that a camera
    straight above is not a special case.
    """
    rotation, elevation = radians(rotation_deg), radians(elevation_deg)
    right = (-cos(rotation), -sin(rotation), 0.0)
    up = (sin(elevation) * sin(rotation), -sin(elevation) * cos(rotation), cos(elevation))
    position = blender_position(rotation_deg, elevation_deg, radius)
    back = blender_position(rotation_deg, elevation_deg, 1.0)
    x, y, z = ((right[i], up[i], back[i], position[i]) for i in range(3))
    return x, y, z, (0.0, 0.0, 0.0, 1.0)


def quaternion(rotation_deg: float, elevation_deg: float) -> Row:
    """Return the orientation of ``cam_to_world`` as (w, x, y, z), as Blender takes it."""
    half_rotation, half_tilt = radians(180 + rotation_deg) / 2, radians(90 - elevation_deg) / 2
    w, z = cos(half_rotation), sin(half_rotation)
    return w * cos(half_tilt), w * sin(half_tilt), z * sin(half_tilt), z * cos(half_tilt)


def side_seen(reach: float, radius: float = RADIUS, fov_rad: float = FOV_RAD) -> float:
    """Return the side of a cube around the origin that would fill ``reach`` of half an image, seen in its middle plane.

    >>> round(side_seen(1.0), 3)
    1.097
    """
    return 2 * radius * tan(fov_rad / 2) * reach


def fitting_scale(side: float) -> float:
    """Return the next multiple of 0.05 from ``side`` on.

    >>> fitting_scale(0.81), fitting_scale(0.85), fitting_scale(0.0)
    (0.85, 0.85, 0.05)
    """
    return max(1, ceil(round(side * 20, 6))) / 20


def condition_of(rotation_deg: float, elevation_deg: float) -> tuple[float, float]:
    """Return (azimuth, polar) in radians, as the discriminator is told them."""
    return radians(rotation_deg), radians(90 - elevation_deg)


def _drawn(key: int, view: int, low: float, high: float) -> View:
    around, above = (uniform(word) for word in words(key, 0, Phase.RENDER_CAMERA, view, 2))
    return View(rotation_deg=360 * around, elevation_deg=low + (high - low) * above)
