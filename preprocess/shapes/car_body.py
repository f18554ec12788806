"""Measures of a car's body and its lines along the length; Z is 0 in the middle and the nose at +length / 2."""

from dataclasses import dataclass

import numpy as np

from preprocess.shapes.draw import Draw
from preprocess.shapes.texture import Array

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """Ranges of a body kind; places along the length are fractions of it."""

    length: Range
    width: Range
    belt: Range
    roof: Range
    wheel: Range
    screen: tuple[float, float]
    """Foot and top of the windscreen."""
    rear: tuple[float, float]
    """Top and foot of the rear window."""
    axles: tuple[float, float] = (0.315, -0.30)
    nose_drop: float
    """How much lower than the belt the nose is."""
    smooth: float = 0.07
    bed: float = 0.0
    rounded: float = 0.3


_KINDS = {
    "sedan": _Kind(
        length=(4.3, 4.9), width=(1.76, 1.9), belt=(0.90, 0.98), roof=(1.40, 1.50), wheel=(0.31, 0.35),
        screen=(0.23, 0.06), rear=(-0.20, -0.35), nose_drop=0.24),
    "hatchback": _Kind(
        length=(3.5, 4.1), width=(1.66, 1.8), belt=(0.92, 1.0), roof=(1.45, 1.58), wheel=(0.30, 0.33),
        screen=(0.28, 0.10), rear=(-0.34, -0.47), nose_drop=0.24),
    "sports": _Kind(
        length=(4.1, 4.6), width=(1.84, 1.98), belt=(0.78, 0.86), roof=(1.16, 1.26), wheel=(0.31, 0.34),
        screen=(0.13, -0.06), rear=(-0.17, -0.44), nose_drop=0.22, smooth=0.13),
    "suv": _Kind(
        length=(4.3, 4.9), width=(1.84, 2.0), belt=(1.04, 1.14), roof=(1.66, 1.82), wheel=(0.38, 0.42),
        screen=(0.23, 0.09), rear=(-0.40, -0.475), nose_drop=0.16),
    "van": _Kind(
        length=(4.4, 5.4), width=(1.86, 2.0), belt=(1.06, 1.18), roof=(1.9, 2.2), wheel=(0.33, 0.37),
        screen=(0.42, 0.25), rear=(-0.6, -0.7), nose_drop=0.25),
    "pickup": _Kind(
        length=(4.9, 5.5), width=(1.86, 2.0), belt=(1.06, 1.16), roof=(1.72, 1.86), wheel=(0.38, 0.43),
        screen=(0.20, 0.08), rear=(-0.10, -0.135), nose_drop=0.14, smooth=0.05, bed=0.45),
    "bus": _Kind(
        length=(6.2, 7.8), width=(2.1, 2.3), belt=(1.2, 1.35), roof=(2.5, 2.85), wheel=(0.44, 0.5),
        screen=(0.492, 0.462), rear=(-0.6, -0.7), axles=(0.29, -0.28), nose_drop=0.2, smooth=0.05, rounded=0.14),
}  # fmt: skip

CAR_KINDS = tuple(_KINDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """The measures of one car."""

    kind: str
    length: float
    width: float
    belt: float
    roof: float
    nose: float
    """Height of the belt at the nose."""
    wheel: float
    """Radius."""
    floor: float
    screen: tuple[float, float]
    rear: tuple[float, float]
    axles: tuple[float, float]
    bed: tuple[float, float, float]
    """Depth, front and back end; no depth, no bed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """What the sections of a body measure, tail to nose."""

    z: Array  # [S]
    low: Array  # [S] underside
    belt: Array  # [S]
    roof: Array  # [S]
    half_width: Array  # [S]


def drawn_body(kind: str, draw: Draw) -> Body:
    """Draw the measures of a car."""
    k = _KINDS[kind]
    length, width, belt, roof, wheel = (
        draw.between(*r) for r in (k.length, k.width, k.belt, k.roof, k.wheel)
    )
    floor = draw.between(0.17, 0.22) + 0.3 * (k.wheel[0] - 0.3)
    jitter = draw.between(-0.015, 0.015)
    foot, top, rear_top, rear_foot = ((place + jitter) * length for place in (*k.screen, *k.rear))
    return Body(
        kind=kind,
        length=length,
        width=width,
        belt=belt,
        roof=roof,
        nose=belt - k.nose_drop * draw.between(0.8, 1.2),
        wheel=wheel,
        floor=floor,
        screen=(min(foot, 0.493 * length), min(top, 0.47 * length)),
        rear=(rear_top, rear_foot),
        axles=(k.axles[0] * length, k.axles[1] * length),
        bed=(k.bed, rear_foot - 0.06, -length / 2 + 0.1),
    )


def lines_of(body: Body) -> Lines:
    """Return the lines at stations that are dense where the body bends."""
    k = _KINDS[body.kind]
    z = _stations(body)
    fine = np.linspace(-body.length / 2, body.length / 2, 801)
    fine_belt = _belt(body, fine)
    above = np.interp(z, fine, _smoothed(_cabin(body, fine, fine_belt), fine, k.smooth))
    above[(z > body.screen[0] + 0.2) | (z < body.rear[1] - 0.2)] = 0
    round_off = _rounding(z, body.length, k.rounded)
    belt = np.interp(z, fine, _smoothed(fine_belt, fine, 0.12)) - 0.14 * round_off
    return Lines(
        z=z,
        low=_underside(body, z, belt) + 0.1 * round_off,
        belt=belt,
        roof=belt + np.where(above > 0.3, above - 0.05 * round_off, above) - _bed_depth(z, body.bed),
        half_width=body.width / 2 * (1 - 0.04 * np.abs(2 * z / body.length) ** 3 - 0.16 * round_off),
    )


def _stations(body: Body) -> Array:
    half, arch = body.length / 2, 1.17 * body.wheel
    (foot, top), (rear_top, rear_foot), (depth, front, back) = body.screen, body.rear, body.bed
    ends = half - np.array([0.0, 0.03, 0.1, 0.25])
    over_wheel = arch * np.array([-1.02, -0.96, -0.75, -0.4, 0, 0.4, 0.75, 0.96, 1.02])
    arches = [axle + over_wheel for axle in body.axles]
    screens = [np.linspace(foot + 0.05, top - 0.05, 4), np.linspace(rear_top + 0.05, rear_foot - 0.05, 4)]
    edges = [edge + np.array([0.02, -0.02]) for edge in (front, back)] if depth else []
    z = np.concatenate([ends, -ends, *arches, *screens, *edges, np.linspace(-half, half, 10)])
    z = np.unique(z[np.abs(z) <= half].round(4))
    return np.concatenate([z[:1], z[1:][np.diff(z) > 0.012]])


def _belt(body: Body, z: Array) -> Array:
    """Return the height of the belt, raised over the wheels."""
    places = [-body.length / 2, body.rear[1], body.screen[0], body.length / 2]
    belt = np.interp(z, places, [body.belt + 0.02, body.belt + 0.03, body.belt, body.nose])
    over_axles = np.min([np.abs(z - axle) for axle in body.axles], axis=0) < body.wheel
    return np.where(over_axles, np.maximum(belt, 2.17 * body.wheel + 0.13), belt)


def _cabin(body: Body, z: Array, belt: Array) -> Array:
    """Return the height of the cabin above the belt: straight screens from their feet to the roof."""
    (foot, top), (rear_top, rear_foot) = body.screen, body.rear
    places = [rear_foot, rear_top, top, foot]
    roof = np.interp(z, places, [0, body.roof - 0.04, body.roof, 0], left=0, right=0)
    base = np.interp(z, [rear_foot, foot], np.interp([rear_foot, foot], z, belt))
    peak = float(roof.max())
    return np.clip(roof / peak * (peak - base), 0, None)


def _underside(body: Body, z: Array, belt: Array) -> Array:
    arch, low = 1.17 * body.wheel, np.full_like(z, body.floor)
    for axle in body.axles:
        above = body.wheel + np.sqrt(np.clip(arch**2 - (z - axle) ** 2, 0, None))
        low = np.maximum(low, np.where(abs(z - axle) < arch, above, 0))
    return np.minimum(low, belt - 0.13)


def _bed_depth(z: Array, bed: tuple[float, float, float]) -> Array:
    depth, front, back = bed
    edges = [back - 0.02, back + 0.02, front - 0.02, front + 0.02]
    return np.interp(z, edges, [0, depth, depth, 0], left=0, right=0)


def _rounding(z: Array, length: float, reach: float) -> Array:
    """Return 1 at both ends, falling to 0 ``reach`` further in along a quarter of an ellipse."""
    inwards = np.clip((length / 2 - np.abs(z)) / reach, 0, 1)
    return 1 - np.sqrt(1 - (1 - inwards) ** 2)


def _smoothed(values: Array, z: Array, sigma: float) -> Array:
    step = z[1] - z[0]
    offsets = np.arange(-round(3 * sigma / step), round(3 * sigma / step) + 1) * step
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    padded = np.pad(values, len(offsets) // 2, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
