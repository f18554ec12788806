"""Procedural textured cars and chairs in ShapeNetCore v1 layout: a dataset free of licences, for demos and tests.

Every model is a function of (seed, synset, model) alone and its files have the same bytes each time. As in ShapeNet,
Y is up, the model is centred and its bounding box has a diagonal of 1; cars point their nose along +Z, chairs face +Z.
A part is a closed *loft*: a row of rings with a cap at each end, so that every part has an inside and an outside.
Lengths below are metres until ``_normalised``.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from get3d_cluster.core.philox import Phase, key_of, uniform, words
from get3d_cluster.storage.local import write_atomic

CAR_SYNSET = "02958343"
CHAIR_SYNSET = "03001627"
CAR_KINDS = ("sedan", "hatchback", "sports", "suv", "van", "pickup", "bus")
CHAIR_KINDS = ("slats", "padded", "arms", "stool", "swivel", "lounge")
VERSION = 1
TEXTURE_PX = 512

Array = npt.NDArray[np.float64]
Value = TypeVar("Value")
Colour = tuple[float, float, float]

_OVERSAMPLING = 2
_MARGIN_PX = 4
_CREASE_DEG = 40.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One model to make."""

    synset: str
    model: str
    kind: str


def planned(cars: int = 48, chairs: int = 6) -> list[Shape]:
    """List the models; more of them begin with the same ones."""
    kinds = [(CAR_SYNSET, CAR_KINDS, cars), (CHAIR_SYNSET, CHAIR_KINDS, chairs)]
    return [
        Shape(synset=synset, model=f"{index:04d}-{names[index % len(names)]}", kind=names[index % len(names)])
        for synset, names, count in kinds
        for index in range(count)
    ]


def write_shapes(root: Path, cars: int = 48, chairs: int = 6, seed: int = 0) -> list[Shape]:
    """Write all models below ``root`` and return them; finished ones are left as they are."""
    shapes = planned(cars, chairs)
    for shape in shapes:
        if not is_written(root, shape, seed):
            write_shape(root, shape, seed)
    return shapes


def write_shape(root: Path, shape: Shape, seed: int = 0) -> None:
    """Write ``<root>/<synset>/<model>/{images/texture.png, model.mtl, model.obj}``.

    The OBJ file comes last: it means done.
    """
    folder = root / shape.synset / shape.model
    obj, texture = made(shape, seed)
    write_atomic(folder / "images" / "texture.png", texture)
    write_atomic(folder / "model.mtl", _MTL.encode())
    write_atomic(folder / "model.obj", obj)


def is_written(root: Path, shape: Shape, seed: int = 0) -> bool:
    """Tell whether the model is there, made with the same seed by the same version."""
    path = root / shape.synset / shape.model / "model.obj"
    if not path.is_file():
        return False
    with path.open() as file:
        return file.readline().rstrip("\n") == _header(shape, seed)


def made(shape: Shape, seed: int = 0) -> tuple[bytes, bytes]:
    """Return the bytes of model.obj and of its texture."""
    draw = _Draw(key_of(str(seed), shape.synset, shape.model))
    parts, texture = _car(shape.kind, draw) if shape.synset == CAR_SYNSET else _chair(shape.kind, draw)
    return _obj(_header(shape, seed), _normalised(parts)), _png(texture)


# ---------------------------------------------------------------------------------------------------- lofts


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A closed triangle mesh, wound outwards."""

    vertices: Array  # [V, 3]
    faces: npt.NDArray[np.int64]  # [F, 3]
    uvs: Array  # [F, 3, 2] per corner, v upwards


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A rectangle of the texture, in texels, whose margin repeats the edge."""

    x: int
    y: int
    width: int
    height: int

    def uv(self, s: Array, t: Array) -> Array:
        """Map (s, t) in [0, 1], t downwards, to texture coordinates [..., 2], v upwards."""
        u = self.x + _MARGIN_PX + s * (self.width - 2 * _MARGIN_PX)
        v = self.y + _MARGIN_PX + t * (self.height - 2 * _MARGIN_PX)
        return np.stack([u / TEXTURE_PX, 1 - v / TEXTURE_PX], axis=-1)

    def paint(self, canvas: Array, colour_at: Callable[[Array, Array], Array]) -> None:
        """Fill the rectangle of the oversampled canvas with ``colour_at(s, t)``, [H, W] each, as [H, W, 3]."""
        s, t = (
            np.clip(
                ((np.arange(n * _OVERSAMPLING) + 0.5) / _OVERSAMPLING - _MARGIN_PX) / (n - 2 * _MARGIN_PX),
                0,
                1,
            )
            for n in (self.width, self.height)
        )
        rows, columns = (slice(a * _OVERSAMPLING, (a + n) * _OVERSAMPLING) for a, n in self._spans())
        canvas[rows, columns] = colour_at(*np.meshgrid(s, t))

    def _spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.y, self.height), (self.x, self.width)


def _loft(
    rings: Array, side_uvs: Array, cap_uvs: Callable[[Array], Array] | Sequence[Callable[[Array], Array]]
) -> Part:
    """Close ``rings`` [S, N, 3] into a solid.

    ``side_uvs`` is [S, N, 2]; a cap's function maps its points [N + 1, 3], the centre last, to [N + 1, 2].
    """
    num_rings, n, _ = rings.shape
    first_uvs, last_uvs = (cap_uvs, cap_uvs) if callable(cap_uvs) else cap_uvs
    ends = [np.concatenate([ring, ring.mean(0, keepdims=True)]) for ring in (rings[0], rings[-1])]
    vertices = np.concatenate([rings.reshape(-1, 3), ends[0][-1:], ends[1][-1:]])
    grid = np.arange(num_rings * n).reshape(num_rings, n)
    a, b, c, d = grid[:-1], np.roll(grid, -1, 1)[:-1], np.roll(grid, -1, 1)[1:], grid[1:]
    sides = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2).reshape(-1, 3)
    j, centre = np.arange(n), np.full(n, n)
    after = np.roll(j, -1)
    first, last = np.stack([after, j, centre], -1), np.stack([j, after, centre], -1)
    faces = np.concatenate(
        [
            sides,
            np.where(first == n, num_rings * n, first),
            np.where(last == n, num_rings * n + 1, last + (num_rings - 1) * n),
        ]
    )
    uvs = np.concatenate([side_uvs.reshape(-1, 2)[sides], first_uvs(ends[0])[first], last_uvs(ends[1])[last]])
    return _outwards(vertices, faces, uvs)


def _outwards(vertices: Array, faces: npt.NDArray[np.int64], uvs: Array) -> Part:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    if np.einsum("fi,fi->", a, np.cross(b, c)) < 0:
        faces, uvs = faces[:, ::-1], uvs[:, ::-1]
    return Part(vertices=vertices, faces=faces, uvs=uvs)


def _flat(chart: Chart, s: float = 0.5, t: float = 0.5) -> Callable[[Array], Array]:
    return lambda points: chart.uv(np.full(len(points), s), np.full(len(points), t))


def _wrapped(chart: Chart, rings: int, n: int) -> Array:
    """Lay a texture along a tube and back again, so that there is no seam."""
    around = np.abs(np.arange(n) - n // 2) / max(n // 2, 1)
    return chart.uv(*np.meshgrid(around, np.linspace(0, 1, rings)))


def _tube(path: Array, radii: Array, chart: Chart, sides: int = 10) -> Part:
    """Make a round bar along ``path`` [S, 3] with one radius a point."""
    axis = path[-1] - path[0]
    axis = axis / np.linalg.norm(axis)
    right = np.cross(axis, [0.0, 0.0, 1.0] if abs(axis[2]) < 0.9 else [0.0, 1.0, 0.0])
    right = right / np.linalg.norm(right)
    angles = np.arange(sides) * 2 * np.pi / sides
    around = np.cos(angles)[:, None] * right + np.sin(angles)[:, None] * np.cross(axis, right)
    rings = path[:, None] + radii[:, None, None] * around
    return _loft(rings, _wrapped(chart, len(path), sides), _flat(chart))


def _box(
    centre: Sequence[float], size: Sequence[float], chart: Chart, bevel: float = 0.02, bend: float = 0.0
) -> Part:
    """Make a box with rounded edges; ``bend`` moves the middle of its X extent along +Z."""
    half = np.asarray(size) / 2
    bevel = min(bevel, 0.45 * 2 * float(half.min()))
    heights = np.array([-1, -1, 1, 1]) * half[1] + np.array([0, bevel, -bevel, 0])
    insets = np.array([bevel, 0, 0, bevel])
    rings = np.stack(
        [_plan(half[0] - i, half[2] - i, bevel, y) for y, i in zip(heights, insets, strict=True)]
    )
    rings[..., 2] += bend * (1 - (rings[..., 0] / half[0]) ** 2)
    return _loft(rings + np.asarray(centre), _wrapped(chart, 4, rings.shape[1]), _flat(chart))


def _plan(x: float, z: float, bevel: float, y: float) -> Array:
    """Return a rectangle with cut corners, with extra points along X so that it can be bent."""
    front = [(k * (x - bevel), z) for k in (1, 0.5, 0, -0.5, -1)]
    points = [(x, z - bevel), *front, (-x, z - bevel)]
    points += [(-px, -pz) for px, pz in points]
    return np.array([(px, y, pz) for px, pz in points])


# ---------------------------------------------------------------------------------------------------- cars

_BODY = Chart(x=0, y=0, width=512, height=256)
_NOSE = Chart(x=0, y=256, width=128, height=128)
_TAIL = Chart(x=128, y=256, width=128, height=128)
_WHEEL = Chart(x=256, y=256, width=128, height=128)
_DARK = Chart(x=384, y=256, width=64, height=64)
_PAINT = Chart(x=448, y=256, width=64, height=64)
_SIGN = Chart(x=384, y=320, width=64, height=64)

_BODY_COLOURS: tuple[Colour, ...] = (
    (0.78, 0.08, 0.07),
    (0.10, 0.25, 0.62),
    (0.90, 0.90, 0.88),
    (0.13, 0.14, 0.16),
    (0.95, 0.74, 0.08),
    (0.62, 0.65, 0.68),
    (0.08, 0.42, 0.24),
    (0.93, 0.42, 0.06),
    (0.36, 0.70, 0.84),
    (0.42, 0.12, 0.16),
    (0.10, 0.52, 0.55),
    (0.83, 0.76, 0.62),
    (0.46, 0.28, 0.56),
    (0.55, 0.74, 0.25),
)
_GLASS: Colour = (0.07, 0.09, 0.12)
_BLACK: Colour = (0.045, 0.045, 0.05)
_TRIM: Colour = (0.16, 0.16, 0.17)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """Ranges of a body kind; places along the length are fractions of it, the nose at +0.5."""

    length: tuple[float, float]
    width: tuple[float, float]
    belt: tuple[float, float]
    roof: tuple[float, float]
    screen: tuple[float, float]
    """Foot and top of the windscreen."""
    rear: tuple[float, float]
    """Top and foot of the rear window."""
    wheel: tuple[float, float]
    axles: tuple[float, float] = (0.315, -0.30)
    nose_drop: float = 0.24
    """How much lower than the belt the nose is."""
    smooth: float = 0.07
    bed: float = 0.0


_KINDS = {
    "sedan": _Kind(
        length=(4.3, 4.9),
        width=(1.76, 1.9),
        belt=(0.90, 0.98),
        roof=(1.40, 1.50),
        screen=(0.23, 0.06),
        rear=(-0.20, -0.35),
        wheel=(0.31, 0.35),
    ),
    "hatchback": _Kind(
        length=(3.5, 4.1),
        width=(1.66, 1.8),
        belt=(0.92, 1.0),
        roof=(1.45, 1.58),
        screen=(0.28, 0.10),
        rear=(-0.34, -0.47),
        wheel=(0.30, 0.33),
    ),
    "sports": _Kind(
        length=(4.1, 4.6),
        width=(1.84, 1.98),
        belt=(0.78, 0.86),
        roof=(1.16, 1.26),
        screen=(0.13, -0.06),
        rear=(-0.17, -0.44),
        wheel=(0.31, 0.34),
        nose_drop=0.22,
        smooth=0.13,
    ),
    "suv": _Kind(
        length=(4.3, 4.9),
        width=(1.84, 2.0),
        belt=(1.04, 1.14),
        roof=(1.66, 1.82),
        screen=(0.23, 0.09),
        rear=(-0.40, -0.475),
        wheel=(0.38, 0.42),
        nose_drop=0.16,
    ),
    "van": _Kind(
        length=(4.4, 5.4),
        width=(1.86, 2.0),
        belt=(1.06, 1.18),
        roof=(1.9, 2.2),
        screen=(0.42, 0.25),
        rear=(-0.6, -0.7),
        wheel=(0.33, 0.37),
        nose_drop=0.25,
    ),
    "pickup": _Kind(
        length=(4.9, 5.5),
        width=(1.86, 2.0),
        belt=(1.06, 1.16),
        roof=(1.72, 1.86),
        screen=(0.20, 0.08),
        rear=(-0.10, -0.135),
        wheel=(0.38, 0.43),
        nose_drop=0.14,
        smooth=0.05,
        bed=0.45,
    ),
    "bus": _Kind(
        length=(6.2, 7.8),
        width=(2.1, 2.3),
        belt=(1.2, 1.35),
        roof=(2.5, 2.85),
        screen=(0.492, 0.462),
        rear=(-0.6, -0.7),
        wheel=(0.44, 0.5),
        axles=(0.29, -0.28),
        nose_drop=0.2,
        smooth=0.05,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Body:
    """A body kind with its numbers drawn, and its lines along the length."""

    kind: str
    length: float
    width: float
    belt: float
    roof: float
    screen: tuple[float, float]
    rear: tuple[float, float]
    axles: tuple[float, float]
    wheel: float
    floor: float
    bed: tuple[float, float, float]
    """Depth, front and back end; no depth, no bed."""
    z: Array  # [S] stations, tail to nose
    low: Array  # [S] underside
    belt_line: Array  # [S]
    roof_line: Array  # [S]
    half_width: Array  # [S]


def _car(kind: str, draw: "_Draw") -> tuple[list[Part], Array]:
    body = _drawn_body(kind, draw)
    half = _half_rings(body)
    rings = np.concatenate([half, half[:, -2:0:-1] * np.array([-1.0, 1.0, 1.0])], axis=1)
    row = np.arange(rings.shape[1])
    across = np.minimum(row, len(row) - row) / _LAST_ROW
    side_uvs = _BODY.uv(*np.meshgrid(np.linspace(0, 1, len(rings)), across, indexing="ij"))
    shell = _loft(rings, side_uvs, [_face_uvs(_TAIL, body), _face_uvs(_NOSE, body)])
    return [shell, *_wheels(body), *_wells(body), *_extras(body, draw)], _car_texture(body, half, draw)


def _drawn_body(kind: str, draw: "_Draw") -> _Body:
    k = _KINDS[kind]
    length, width, belt, roof = (draw.between(*r) for r in (k.length, k.width, k.belt, k.roof))
    wheel, floor = draw.between(*k.wheel), draw.between(0.17, 0.22) + 0.3 * (k.wheel[0] - 0.3)
    jitter = draw.between(-0.015, 0.015)
    screen, rear = ((a + jitter) * length for a in k.screen), ((a + jitter) * length for a in k.rear)
    (foot, top), (rear_top, rear_foot) = screen, rear
    foot, top = min(foot, 0.493 * length), min(top, 0.47 * length)
    axles = (k.axles[0] * length, k.axles[1] * length)
    bed = (k.bed, rear_foot - 0.06, -length / 2 + 0.1)
    z = _stations(length, (foot, top, rear_top, rear_foot), axles, wheel, bed)
    fine = np.linspace(-length / 2, length / 2, 801)
    nose = belt - k.nose_drop * draw.between(0.8, 1.2)
    belt_fine = np.interp(
        fine, [-length / 2, rear_foot, foot, length / 2], [belt + 0.02, belt + 0.03, belt, nose]
    )
    roof_fine = np.interp(fine, [rear_foot, rear_top, top, foot], [0, roof - 0.04, roof, 0], left=0, right=0)
    over_axles = np.min([np.abs(fine - axle) for axle in axles], axis=0) < wheel
    belt_fine = np.where(over_axles, np.maximum(belt_fine, 2.17 * wheel + 0.13), belt_fine)
    belt_fine, cabin = _smoothed(belt_fine, fine, 0.12), _cabin(fine, belt_fine, roof_fine, foot, rear_foot)
    above = np.interp(z, fine, _smoothed(cabin, fine, k.smooth))
    above[(z > foot + 0.2) | (z < rear_foot - 0.2)] = 0
    round_off = _rounding(z, length, 0.3 if kind != "bus" else 0.14)
    belt_line = np.interp(z, fine, belt_fine) - 0.14 * round_off
    return _Body(
        kind=kind,
        length=length,
        width=width,
        belt=belt,
        roof=roof,
        screen=(foot, top),
        rear=(rear_top, rear_foot),
        axles=axles,
        wheel=wheel,
        floor=floor,
        bed=bed,
        z=z,
        low=_underside(z, axles, wheel, floor, belt_line) + 0.1 * round_off,
        belt_line=belt_line,
        roof_line=belt_line + np.where(above > 0.3, above - 0.05 * round_off, above) - _bed_depth(z, bed),
        half_width=width / 2 * (1 - 0.04 * np.abs(2 * z / length) ** 3 - 0.16 * round_off),
    )


def _cabin(z: Array, belt: Array, roof: Array, foot: float, rear_foot: float) -> Array:
    """Return the height of the cabin above the belt: straight screens from their feet to the roof."""
    at_foot, at_rear = np.interp([foot, rear_foot], z, belt)
    slope = np.clip(roof, 0, None)
    base = np.interp(z, [rear_foot, foot], [at_rear, at_foot])
    peak = max(float(slope.max()), 1e-6)
    return np.clip(slope / peak * (peak - base), 0, None)


def _stations(
    length: float,
    lines: tuple[float, ...],
    axles: tuple[float, float],
    wheel: float,
    bed: tuple[float, float, float],
) -> Array:
    half = length / 2
    (foot, top, rear_top, rear_foot), arch = lines, 1.17 * wheel
    ends = half - np.array([0.0, 0.03, 0.1, 0.25])
    arches = [axle + arch * np.array([-1.02, -0.96, -0.75, -0.4, 0, 0.4, 0.75, 0.96, 1.02]) for axle in axles]
    screens = [np.linspace(foot + 0.05, top - 0.05, 4), np.linspace(rear_top + 0.05, rear_foot - 0.05, 4)]
    edges = [bed[1] + np.array([0.02, -0.02]), bed[2] + np.array([0.02, -0.02])] if bed[0] else []
    z = np.concatenate([ends, -ends, *arches, *screens, *edges, np.linspace(-half, half, 10)])
    z = np.unique(z[np.abs(z) <= half].round(4))
    return np.concatenate([z[:1], z[1:][np.diff(z) > 0.012]])


def _underside(z: Array, axles: tuple[float, float], wheel: float, floor: float, belt: Array) -> Array:
    arch, low = 1.17 * wheel, np.full_like(z, floor)
    for axle in axles:
        above = np.where(
            abs(z - axle) < arch, wheel + np.sqrt(np.clip(arch**2 - (z - axle) ** 2, 0, None)), 0
        )
        low = np.maximum(low, above)
    return np.minimum(low, belt - 0.13)


def _bed_depth(z: Array, bed: tuple[float, float, float]) -> Array:
    depth, front, back = bed
    return np.interp(
        z, [back - 0.02, back + 0.02, front - 0.02, front + 0.02], [0, depth, depth, 0], left=0, right=0
    )


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


_SIDE_ROW, _SHOULDER_ROW, _CABIN_ROW, _RAIL_ROW, _LAST_ROW = 2, 6, 7, 9, 12


def _half_rings(body: _Body) -> Array:
    """Return the right half of each section, underside to roof: [S, 13, 3]."""
    w, low, belt = body.half_width, body.low, body.belt_line
    above = body.roof_line - belt
    tumble = 0.22 * np.clip(above, 0, None) * (body.width / 2) / 0.9
    crown = np.where(above < -0.02, 0.0, 0.035)
    rail = 0.87 * w - np.clip(tumble, 0, 0.17 * w)
    side = belt - low
    x = [0 * w, 0.78 * w, 0.96 * w, w, 1.0 * w, 0.985 * w, 0.94 * w, 0.89 * w]
    y = [
        low,
        low,
        low + 0.04,
        low + 0.25 * side,
        low + 0.65 * side,
        belt - 0.05,
        belt - 0.005,
        belt + 0.02 * above,
    ]
    x += [(0.885 * w + rail) / 2, rail, rail * 0.93, rail * 0.5, 0 * w]
    y += [belt + 0.5 * above + 0.3 * crown, belt + 0.93 * above + 0.4 * crown]
    y += [belt + above + 0.55 * crown, belt + above + 0.9 * crown, belt + above + crown]
    z = np.broadcast_to(body.z[:, None], (len(w), len(x)))
    return np.stack([np.stack(x, 1), np.stack(y, 1), z], axis=-1)


def _face_uvs(chart: Chart, body: _Body) -> Callable[[Array], Array]:
    return lambda points: chart.uv(np.abs(points[:, 0]) / (body.width / 2), points[:, 1] / (body.roof + 0.1))


def _wheels(body: _Body) -> list[Part]:
    r, sides = body.wheel, 16
    angles = np.arange(sides) * 2 * np.pi / sides
    profile = [(0.25, 0.03), (0.62, 0.02), (0.68, 0.0), (0.93, 0.0), (1.0, 0.05), (1.0, 0.2)]
    wheels = []
    for axle in body.axles:
        for side in (-1, 1):
            outer = side * float(np.interp(axle, body.z, body.half_width)) * 0.995
            rings = np.stack(
                [
                    np.stack(
                        [
                            np.full(sides, outer - side * depth),
                            r + r * s * np.sin(angles),
                            axle + r * s * np.cos(angles),
                        ],
                        -1,
                    )
                    for s, depth in profile
                ]
            )
            disc = _disc_uvs(r, axle)
            wheels.append(
                _loft(rings, disc(rings.reshape(-1, 3)).reshape(*rings.shape[:2], 2), [disc, _flat(_DARK)])
            )
    return wheels


def _disc_uvs(r: float, axle: float) -> Callable[[Array], Array]:
    return lambda points: _WHEEL.uv(0.5 + (points[:, 2] - axle) / r / 2, 0.5 - (points[:, 1] - r) / r / 2)


def _wells(body: _Body) -> list[Part]:
    """Fill the arches behind the wheels with darkness."""
    return [_well(body, axle) for axle in body.axles]


def _well(body: _Body, axle: float) -> Part:
    reach = 1.1 * body.wheel
    lowest = float(np.interp(axle + np.array([-reach, 0, reach]), body.z, body.belt_line).min())
    top, bottom = min(2.1 * body.wheel, lowest - 0.09), body.floor - 0.02
    size = (0.72 * body.width, top - bottom, 2 * reach)
    return _box((0, (top + bottom) / 2, axle), size, _DARK, bevel=0.12)


def _extras(body: _Body, draw: "_Draw") -> list[Part]:
    w = float(np.interp(body.screen[0], body.z, body.half_width))
    z = min(body.screen[0] - 0.22, body.length / 2 - 0.3)
    y = float(np.interp(z, body.z, body.belt_line)) + 0.09
    parts = [_box((side * (w + 0.05), y, z), (0.2, 0.14, 0.1), _PAINT, bevel=0.035) for side in (-1, 1)]
    middle = (body.screen[1] + max(body.rear[0], -body.length / 2)) / 2
    chance = draw.between(0, 1)
    if body.kind == "sports" and chance < 0.7:
        parts += _spoiler(body)
    if body.kind == "suv" and chance < 0.6:
        parts += [_box((s * 0.6, body.roof + 0.07, middle), (0.06, 0.06, 1.6), _DARK) for s in (-1, 1)]
    if body.kind == "sedan" and chance < 0.3:
        parts.append(_box((0, body.roof + 0.1, middle + 0.1), (0.5, 0.17, 0.2), _SIGN, bevel=0.04))
    if body.kind == "bus":
        parts.append(_box((0, body.roof + 0.08, -0.1 * body.length), (1.2, 0.24, 1.8), _PAINT, bevel=0.06))
    return parts


def _spoiler(body: _Body) -> list[Part]:
    z = -body.length / 2 + 0.2
    y = body.belt + 0.24
    wing = _box((0, y, z), (0.84 * body.width, 0.05, 0.26), _PAINT, bevel=0.02)
    return [wing, *(_box((s * 0.5, y - 0.16, z), (0.06, 0.32, 0.12), _DARK, bevel=0.01) for s in (-1, 1))]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scheme:
    """Colours and decoration of a car."""

    body: Colour
    second: Colour
    hub: Colour
    spokes: int
    style: str
    doors: int
    panel: bool
    """A van without rear side windows."""


def _scheme(body: _Body, draw: "_Draw") -> _Scheme:
    base = draw.one_of([c for c in _BODY_COLOURS if body.kind != "bus" or sum(c) > 1])
    second = draw.one_of(
        [c for c in ((0.93, 0.93, 0.91), _TRIM, (0.78, 0.08, 0.07), (0.95, 0.74, 0.08)) if c != base]
    )
    styles = {
        "sports": ("stripes", "stripes", "plain", "one-stripe"),
        "bus": ("band", "roof"),
        "van": ("band", "roof", "plain", "sill"),
        "suv": ("sill", "roof", "plain"),
        "pickup": ("sill", "band", "plain"),
    }.get(body.kind, ("plain", "plain", "roof", "sill", "stripes", "band"))
    shade = draw.between(0.92, 1.08)
    return _Scheme(
        body=(min(base[0] * shade, 0.96), min(base[1] * shade, 0.96), min(base[2] * shade, 0.96)),
        second=second,
        hub=draw.one_of(((0.72, 0.73, 0.75), (0.5, 0.51, 0.53), (0.82, 0.8, 0.74), (0.2, 0.2, 0.22))),
        spokes=draw.one_of((5, 6, 8)),
        style=draw.one_of(styles),
        doors=1
        if body.kind == "sports"
        else draw.one_of((1, 2))
        if body.kind in ("hatchback", "pickup")
        else 2,
        panel=body.kind == "van" and draw.between(0, 1) < 0.5,
    )


def _car_texture(body: _Body, half: Array, draw: "_Draw") -> Array:
    scheme = _scheme(body, draw)
    canvas = np.zeros((TEXTURE_PX * _OVERSAMPLING, TEXTURE_PX * _OVERSAMPLING, 3))
    canvas[:] = scheme.body
    _BODY.paint(canvas, lambda s, t: _shell_colours(body, half, scheme, s, t))
    for chart, is_nose in ((_NOSE, True), (_TAIL, False)):
        chart.paint(canvas, lambda s, t, nose=is_nose: _end_colours(body, scheme, s, t, nose))  # type: ignore[misc]
    _WHEEL.paint(canvas, lambda s, t: _wheel_colours(scheme, s, t))
    _DARK.paint(canvas, lambda s, _t: _plain(s, _BLACK))
    _SIGN.paint(canvas, lambda s, _t: _plain(s, (0.97, 0.9, 0.45)))
    return canvas


def _plain(like: Array, colour: Colour) -> Array:
    return np.broadcast_to(np.array(colour), (*like.shape, 3)).copy()


def _shell_colours(body: _Body, half: Array, scheme: _Scheme, s: Array, t: Array) -> Array:
    """Colour the shell by where its texels lie in space; ``s`` runs along the stations, ``t`` along the half ring."""
    station, row = s * (len(half) - 1), t * _LAST_ROW
    x, y, z = np.moveaxis(_interpolated(half, station, row), -1, 0)
    along = np.arange(len(half))
    belt, above = (np.interp(station, along, v) for v in (body.belt_line, body.roof_line - body.belt_line))
    colours = _plain(s, scheme.body)
    _decorate(colours, body, scheme, (x, y, z), row, above)
    _line_doors(colours, body, scheme, (x, y, z), row)
    colours[row < _SIDE_ROW + 0.1] = _BLACK
    _glaze(colours, body, scheme, (x, y, z), row, above)
    colours[(above < -0.1) & (row > _CABIN_ROW + 0.4)] = _TRIM
    _light_ends(colours, body, x, y, z, belt)
    return colours


def _interpolated(half: Array, station: Array, row: Array) -> Array:
    i, j = (
        np.clip(np.floor(v).astype(int), 0, n - 2)
        for v, n in zip((station, row), half.shape[:2], strict=True)
    )
    a, b = (station - i)[..., None], (row - j)[..., None]
    top = half[i, j] * (1 - a) + half[i + 1, j] * a
    return np.asarray(top * (1 - b) + (half[i, j + 1] * (1 - a) + half[i + 1, j + 1] * a) * b)


def _decorate(
    colours: Array, body: _Body, scheme: _Scheme, where: tuple[Array, Array, Array], row: Array, above: Array
) -> None:
    x, y, _ = where
    height = (y - body.floor) / (body.belt - body.floor)
    tall = above > 0.5 * (body.roof - body.belt)
    masks = {
        "plain": np.zeros_like(row, dtype=bool),
        "roof": (row > _RAIL_ROW - 0.15) & tall,
        "sill": (row < _SHOULDER_ROW) & (height < 0.33),
        "band": (row < _SHOULDER_ROW) & (height > 0.5) & (height < 0.78),
        "stripes": (row > _SHOULDER_ROW) & (x > 0.07) & (x < 0.27),
        "one-stripe": (row > _SHOULDER_ROW) & (x < 0.16),
    }
    colours[masks[scheme.style]] = scheme.second


def _pillars(body: _Body, scheme: _Scheme) -> list[float]:
    """Return where the doors and side windows are parted, front to back."""
    front, back = body.screen[1], max(body.rear[0], -0.44 * body.length)
    if body.kind == "bus":
        return [float(z) for z in np.linspace(0.40 * body.length, -0.44 * body.length, 8)]
    return (
        [float(z) for z in np.linspace(front, back, scheme.doors + 2)[1:-1]]
        if scheme.doors > 1
        else [back + 0.25 * (front - back)]
    )


def _line_doors(
    colours: Array, body: _Body, scheme: _Scheme, where: tuple[Array, Array, Array], row: Array
) -> None:
    """Draw door gaps and handles."""
    _, y, z = where
    side = (row > _SIDE_ROW + 0.3) & (row < _CABIN_ROW)
    front = 0.5 * (body.screen[0] + body.screen[1])
    gaps = [front, *_pillars(body, scheme)[: scheme.doors]]
    for gap in gaps:
        colours[side & (np.abs(z - gap) < 0.014) & (y > body.floor + 0.1)] *= 0.45
    for gap in gaps[1:]:
        handle = (np.abs(z - gap - 0.17) < 0.08) & (np.abs(y - body.belt + 0.13) < 0.022)
        colours[side & handle] = _TRIM


def _glaze(
    colours: Array, body: _Body, scheme: _Scheme, where: tuple[Array, Array, Array], row: Array, above: Array
) -> None:
    """Paint windows as dark glass: screens across the top rows of the slopes, side windows between belt and rail."""
    _, _, z = where
    slope = above / (body.roof - body.belt)
    top = (row > _RAIL_ROW + 0.35) & (slope > 0.1) & (slope < 0.9)
    screens = top & ((z > body.screen[1] - 0.05) | (z < body.rear[0] + 0.05))
    colours[screens] = _GLASS
    side = (row > _CABIN_ROW + 0.12) & (row < _RAIL_ROW - 0.12) & (slope > 0.22)
    limit = body.screen[1] - 0.17 * body.length if scheme.panel else -0.46 * body.length
    side &= (z > limit) & (z < 0.485 * body.length)
    for pillar in _pillars(body, scheme):
        side &= np.abs(z - pillar) > 0.045
    colours[side] = _GLASS
    colours[side & (row > _RAIL_ROW - 0.75) & (row < _RAIL_ROW - 0.55)] = np.array(_GLASS) * 1.9


def _light_ends(colours: Array, body: _Body, x: Array, y: Array, z: Array, belt: Array) -> None:
    """Wrap the lights and bumpers around both ends of the shell."""
    half, low = body.width / 2, body.floor
    near = np.abs(z) > body.length / 2 - 0.27
    colours[near & (y < low + 0.3 * (body.belt - low)) & (y > low)] = _TRIM
    lamp = (np.abs(y - _lamp_height(body)) < 0.085) & (x > 0.55 * half) & (y < belt + 0.02)
    colours[near & lamp & (z > 0)] = (0.95, 0.95, 0.86)
    colours[near & lamp & (z < 0)] = (0.72, 0.03, 0.03)


def _lamp_height(body: _Body) -> float:
    return float(body.floor + 0.62 * (body.belt_line[-1] - body.floor))


def _end_colours(body: _Body, scheme: _Scheme, s: Array, t: Array, nose: bool) -> Array:
    x, y = s * body.width / 2, t * (body.roof + 0.1)
    half, lamp = body.width / 2, _lamp_height(body)
    belt = float(body.belt_line[-1 if nose else 0])
    colours = _plain(s, scheme.body)
    colours[y < body.floor + 0.3 * (body.belt - body.floor)] = _TRIM
    if nose:
        colours[(np.abs(y - lamp) < 0.09) & (x < 0.5 * half)] = _BLACK
        bars = np.abs((y - lamp) / 0.06 - np.round((y - lamp) / 0.06)) < 0.16
        colours[(np.abs(y - lamp) < 0.085) & (x < 0.48 * half) & bars] = (0.5, 0.5, 0.52)
    colours[(np.abs(y - lamp) < 0.085) & (x > 0.55 * half)] = (
        (0.95, 0.95, 0.86) if nose else (0.72, 0.03, 0.03)
    )
    plate = lamp - 0.2 if nose else lamp - 0.02
    colours[(np.abs(y - plate) < 0.055) & (x < 0.24)] = (0.92, 0.92, 0.88)
    if float(body.roof_line[-1 if nose else 0]) - belt > 0.3:
        window = (y > belt + 0.08) & (y < body.roof - 0.22) & (x < 0.72 * half) & ((x > 0.03) | nose)
        colours[window] = _GLASS
    return colours


def _wheel_colours(scheme: _Scheme, s: Array, t: Array) -> Array:
    dx, dy = 2 * s - 1, 2 * t - 1
    r, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    colours = _plain(s, _BLACK)
    colours[(r > 0.76) & (r < 0.8)] = (0.1, 0.1, 0.1)
    colours[r < 0.66] = scheme.hub
    between = np.cos(scheme.spokes * angle) < 0.15
    colours[(r > 0.22) & (r < 0.56) & between] = (0.07, 0.07, 0.08)
    colours[r < 0.1] = (0.15, 0.15, 0.16)
    return colours


# ---------------------------------------------------------------------------------------------------- chairs

_WOOD = Chart(x=0, y=0, width=256, height=256)
_CLOTH = Chart(x=256, y=0, width=256, height=256)
_METAL = Chart(x=0, y=256, width=128, height=128)

_WOODS: tuple[Colour, ...] = (
    (0.55, 0.35, 0.18),
    (0.34, 0.19, 0.10),
    (0.76, 0.58, 0.36),
    (0.88, 0.86, 0.82),
    (0.13, 0.1, 0.09),
)
_CLOTHS: tuple[Colour, ...] = (
    (0.62, 0.12, 0.12),
    (0.14, 0.30, 0.48),
    (0.20, 0.42, 0.30),
    (0.80, 0.72, 0.56),
    (0.25, 0.25, 0.28),
    (0.85, 0.50, 0.12),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seat:
    """Measures of a chair."""

    width: float
    depth: float
    height: float
    back: float
    lean: float
    thickness: float


def _chair(kind: str, draw: "_Draw") -> tuple[list[Part], Array]:
    seat = _Seat(
        width=draw.between(0.42, 0.52) * (1.2 if kind == "lounge" else 1),
        depth=draw.between(0.42, 0.50) * (1.15 if kind == "lounge" else 1),
        height=draw.between(0.42, 0.47) * (0.82 if kind == "lounge" else 1),
        back=draw.between(0.42, 0.58),
        lean=draw.between(0.04, 0.10) * (1.5 if kind == "lounge" else 1),
        thickness={"padded": 0.08, "lounge": 0.13, "arms": 0.07, "swivel": 0.08}.get(kind, 0.04),
    )
    soft = _WOOD if kind in ("slats", "stool") else _CLOTH
    top = _box(
        (0, seat.height, 0), (seat.width, seat.thickness, seat.depth), soft, bevel=seat.thickness * 0.4
    )
    base = (
        _swivel_base(seat) if kind == "swivel" else _legs(seat, draw, _METAL if kind == "padded" else _WOOD)
    )
    back = _back(seat, kind, draw)
    arms = _arms(seat, thick=kind == "lounge") if kind in ("arms", "lounge", "swivel") else []
    return [top, *base, *back, *arms], _chair_texture(draw)


def _legs(seat: _Seat, draw: "_Draw", chart: Chart) -> list[Part]:
    splay, radius = draw.between(0.0, 0.05), draw.between(0.016, 0.026)
    legs, corners = [], [(sx, sz) for sx in (-1, 1) for sz in (-1, 1)]
    for sx, sz in corners:
        x, z = sx * (seat.width / 2 - 0.04), sz * (seat.depth / 2 - 0.04)
        path = np.array([[x, seat.height, z], [x + sx * splay / 2, seat.height / 2, z + sz * splay / 2]])
        path = np.concatenate([path, [[x + sx * splay, 0.0, z + sz * splay]]])
        legs.append(_tube(path, radius * np.array([1.15, 1.0, 0.75]), chart))
    if draw.between(0, 1) < 0.6:
        y = seat.height * 0.4
        x = seat.width / 2 - 0.04 + 0.6 * splay
        reach = seat.depth - 0.08 + 1.2 * splay
        legs += [_box((sx * x, y, 0), (0.022, 0.03, reach), chart, bevel=0.005) for sx in (-1, 1)]
    return legs


def _swivel_base(seat: _Seat) -> list[Part]:
    post = np.array([[0, 0.08, 0], [0, seat.height * 0.6, 0], [0, seat.height, 0]])
    parts = [_tube(post, np.array([0.035, 0.03, 0.025]), _METAL)]
    for k in range(5):
        angle = 2 * np.pi * k / 5 + np.pi / 2
        end = 0.29 * np.array([np.cos(angle), 0, np.sin(angle)])
        above = end + np.array([0, 0.06, 0])
        parts.append(_tube(np.array([[0, 0.09, 0], above]), np.array([0.026, 0.017]), _METAL))
        parts.append(_tube(np.array([end, above]), np.array([0.028, 0.024]), _METAL))
    return parts


def _back(seat: _Seat, kind: str, draw: "_Draw") -> list[Part]:
    z, bottom = -seat.depth / 2 + 0.025, seat.height
    if kind == "stool":
        return [
            *(
                _post(x, bottom, 0.5 * seat.back, z, seat.lean, 0.016)
                for x in (-seat.width / 3, seat.width / 3)
            ),
            _leaning((seat.width * 0.85, 0.09, 0.03), bottom + 0.5 * seat.back, z - 0.5 * seat.lean, _WOOD),
        ]
    if kind == "slats":
        rails = int(draw.between(2, 5))
        heights = np.linspace(0.35, 0.93, rails) * seat.back
        posts = [
            _post(x, bottom, seat.back, z, seat.lean, 0.02)
            for x in (-seat.width / 2 + 0.03, seat.width / 2 - 0.03)
        ]
        size = (seat.width - 0.06, 0.3 * seat.back / rails + 0.03, 0.022)
        return posts + [_leaning(size, bottom + h, z - seat.lean * h / seat.back, _WOOD) for h in heights]
    thick = 0.12 if kind == "lounge" else 0.06
    gap = 0.0 if kind in ("lounge", "padded") else 0.1
    panel = _box(
        (0, bottom + gap + (seat.back - gap) / 2, z),
        (seat.width * 0.94, seat.back - gap, thick),
        _CLOTH,
        bevel=0.03,
        bend=-0.03,
    )
    shift = seat.lean * (panel.vertices[:, 1] - bottom) / seat.back
    posts = [] if gap == 0 else [_post(x, bottom, 0.5 * seat.back, z, seat.lean, 0.017) for x in (-0.1, 0.1)]
    return [_moved(panel, z=-shift), *posts]


def _post(x: float, bottom: float, height: float, z: float, lean: float, radius: float) -> Part:
    path = np.array([[x, bottom, z], [x, bottom + height / 2, z - lean / 2], [x, bottom + height, z - lean]])
    return _tube(path, radius * np.array([1.1, 1.0, 0.9]), _WOOD)


def _leaning(size: tuple[float, float, float], y: float, z: float, chart: Chart) -> Part:
    return _box((0, y, z), size, chart, bevel=0.008, bend=-0.025)


def _arms(seat: _Seat, *, thick: bool) -> list[Part]:
    y, parts = seat.height + 0.2, []
    for side in (-1, 1):
        x = side * (seat.width / 2 + (0.03 if thick else 0.0))
        if thick:
            parts.append(_box((x, y - 0.14, 0), (0.12, 0.32, seat.depth * 0.96), _CLOTH, bevel=0.03))
            continue
        parts.append(_box((x, y, 0.0), (0.05, 0.028, seat.depth * 0.85), _WOOD, bevel=0.01))
        parts.append(_tube(np.array([[x, seat.height, 0.12], [x, y, 0.14]]), np.array([0.015, 0.014]), _WOOD))
        parts.append(
            _tube(np.array([[x, seat.height, -0.14], [x, y, -0.14]]), np.array([0.015, 0.014]), _WOOD)
        )
    return parts


def _moved(part: Part, *, z: Array) -> Part:
    vertices = part.vertices.copy()
    vertices[:, 2] += z
    return Part(vertices=vertices, faces=part.faces, uvs=part.uvs)


def _chair_texture(draw: "_Draw") -> Array:
    wood, cloth = draw.one_of(_WOODS), draw.one_of(_CLOTHS)
    check, phase = draw.one_of((0.0, 0.0, 0.18, 0.3)), draw.between(0, 6)
    canvas = np.zeros((TEXTURE_PX * _OVERSAMPLING, TEXTURE_PX * _OVERSAMPLING, 3))
    _WOOD.paint(canvas, lambda s, t: _plain(s, wood) * _grain(s, t, phase)[..., None])
    _CLOTH.paint(canvas, lambda s, t: _plain(s, cloth) * _weave(s, t, check)[..., None])
    _METAL.paint(canvas, lambda s, t: _plain(s, (0.5, 0.51, 0.53)) * (0.9 + 0.2 * t[..., None]))
    return canvas


def _grain(s: Array, t: Array, phase: float) -> Array:
    rings = 18 * s + 1.1 * np.sin(5 * t + phase) + 0.6 * np.sin(11 * t + 7 * s)
    return np.asarray(0.92 + 0.1 * np.sin(2 * np.pi * rings) * np.sin(3 * s + phase))


def _weave(s: Array, t: Array, check: float) -> Array:
    squares = (np.floor(8 * s) + np.floor(8 * t)) % 2
    return np.asarray(1 - check * squares + 0.04 * np.sin(200 * s) * np.sin(200 * t))


# ---------------------------------------------------------------------------------------------------- files

_MTL = """newmtl surface
Ka 0 0 0
Kd 1 1 1
Ks 0.04 0.04 0.04
Ns 20
d 1
illum 2
map_Kd ./images/texture.png
"""


class _Draw:
    """A row of random numbers for one model."""

    def __init__(self, key: int) -> None:
        self._words = iter(words(key, VERSION, Phase.SHAPES, 0, 256))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * uniform(next(self._words))

    def one_of(self, values: Sequence[Value]) -> Value:
        return values[int(len(values) * uniform(next(self._words)))]


def _header(shape: Shape, seed: int) -> str:
    return f"# get3d-cluster shapes {VERSION}, seed {seed}, {shape.synset}/{shape.model}"


def _normalised(parts: Sequence[Part]) -> list[Part]:
    """Centre the bounding box of all parts and make its diagonal 1."""
    everything = np.concatenate([part.vertices for part in parts])
    low, high = everything.min(0), everything.max(0)
    centre, diagonal = (low + high) / 2, float(np.linalg.norm(high - low))
    return [Part(vertices=(p.vertices - centre) / diagonal, faces=p.faces, uvs=p.uvs) for p in parts]


def _obj(header: str, parts: Sequence[Part]) -> bytes:
    lines, base = [header, "mtllib model.mtl", "usemtl surface"], 1
    coordinates, normals = _Rows("vt"), _Rows("vn")
    for index, part in enumerate(parts):
        vt = [coordinates.number(f"{u:.5f} {v:.5f}") for u, v in part.uvs.reshape(-1, 2)]
        vn = [normals.number("{:.3f} {:.3f} {:.3f}".format(*n)) for n in _corner_normals(part).reshape(-1, 3)]
        lines.append(f"o part{index}")
        lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in part.vertices]
        lines += coordinates.taken() + normals.taken()
        corners = zip((part.faces + base).reshape(-1), vt, vn, strict=True)
        triples = [f"{a}/{b}/{c}" for a, b, c in corners]
        lines += [
            f"f {a} {b} {c}" for a, b, c in zip(triples[::3], triples[1::3], triples[2::3], strict=True)
        ]
        base += len(part.vertices)
    return ("\n".join(lines) + "\n").encode()


class _Rows:
    """Rows of one kind in an OBJ file, each written once and numbered from 1."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._numbers: dict[str, int] = {}
        self._num_taken = 0

    def number(self, row: str) -> int:
        return self._numbers.setdefault(row, len(self._numbers) + 1)

    def taken(self) -> list[str]:
        """Return the lines that are new since the last call."""
        rows = list(self._numbers)[self._num_taken :]
        self._num_taken = len(self._numbers)
        return [f"{self._kind} {row}" for row in rows]


def _corner_normals(part: Part) -> Array:
    """Average, at each corner [F, 3, 3], the faces around the vertex that bend less than the crease angle."""
    a, b, c = (part.vertices[part.faces[:, k]] for k in range(3))
    weighted = np.cross(b - a, c - a)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    around: list[list[int]] = [[] for _ in part.vertices]
    for index, face in enumerate(part.faces):
        for vertex in face:
            around[vertex].append(index)
    limit = np.cos(np.radians(_CREASE_DEG))
    normals = np.empty((len(part.faces), 3, 3))
    for index, face in enumerate(part.faces):
        for k, vertex in enumerate(face):
            near = np.array(around[vertex])
            total = weighted[near[unit[near] @ unit[index] > limit]].sum(0)
            normals[index, k] = total / max(float(np.linalg.norm(total)), 1e-12)
    return normals.round(3) + 0.0  # no negative zero


def _png(canvas: Array) -> bytes:
    """Average the oversampled canvas and encode it; colours are sRGB values as they stand."""
    n = TEXTURE_PX
    pixels = canvas.reshape(n, _OVERSAMPLING, n, _OVERSAMPLING, 3).mean((1, 3))
    image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=6)
    return out.getvalue()
