"""The parts and the texture of a chair."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from preprocess.shapes.draw import Draw
from preprocess.shapes.mesh import Part, box, moved, tube
from preprocess.shapes.texture import Array, Chart, Colour, canvas_of, plain

_WOOD = Chart(x=0, y=0, width=256, height=256)
_CLOTH = Chart(x=256, y=0, width=256, height=256)
_METAL = Chart(x=0, y=256, width=128, height=128)

_WOODS: tuple[Colour, ...] = (
    (0.55, 0.35, 0.18), (0.34, 0.19, 0.10), (0.76, 0.58, 0.36), (0.88, 0.86, 0.82), (0.13, 0.1, 0.09),
)  # fmt: skip
_CLOTHS: tuple[Colour, ...] = (
    (0.62, 0.12, 0.12), (0.14, 0.30, 0.48), (0.20, 0.42, 0.30), (0.80, 0.72, 0.56), (0.25, 0.25, 0.28),
    (0.85, 0.50, 0.12),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """How a kind of chair is built."""

    seat: Chart
    thickness: float
    legs: Chart | None = _WOOD
    """None: a post on a star of five feet."""
    back: Literal["rail", "slats", "panel"] = "panel"
    back_thickness: float = 0.06
    gap: float = 0.1
    """Between seat and panel; posts bridge it."""
    arms: Literal["none", "rests", "sides"] = "none"
    scale: tuple[float, float, float, float] = (1, 1, 1, 1)
    """Of width, depth, height and lean."""


_KINDS = {
    "slats": _Kind(seat=_WOOD, thickness=0.04, back="slats"),
    "padded": _Kind(seat=_CLOTH, thickness=0.08, legs=_METAL, gap=0.0),
    "arms": _Kind(seat=_CLOTH, thickness=0.07, arms="rests"),
    "stool": _Kind(seat=_WOOD, thickness=0.04, back="rail"),
    "swivel": _Kind(seat=_CLOTH, thickness=0.08, legs=None, arms="rests"),
    "lounge": _Kind(
        seat=_CLOTH, thickness=0.13, back_thickness=0.12, gap=0.0, arms="sides", scale=(1.2, 1.15, 0.82, 1.5)
    ),
}

CHAIR_KINDS = tuple(_KINDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seat:
    """Measures of a chair."""

    width: float
    depth: float
    height: float
    back: float
    lean: float

    @property
    def back_z(self) -> float:
        return -self.depth / 2 + 0.025


def chair(kind: str, draw: Draw) -> tuple[list[Part], Array]:
    """Return the parts of a chair and its canvas."""
    k = _KINDS[kind]
    width, depth, height, lean = k.scale
    seat = _Seat(
        width=draw.between(0.42, 0.52) * width,
        depth=draw.between(0.42, 0.50) * depth,
        height=draw.between(0.42, 0.47) * height,
        back=draw.between(0.42, 0.58),
        lean=draw.between(0.04, 0.10) * lean,
    )
    size = (seat.width, k.thickness, seat.depth)
    top = box((0, seat.height, 0), size, k.seat, bevel=k.thickness * 0.4)
    base = _legs(seat, k.legs, draw) if k.legs else _swivel_base(seat)
    back = {"rail": _rail_back, "slats": _slat_back, "panel": _panel_back}[k.back](seat, k, draw)
    arms = {"none": _no_arms, "rests": _arm_rests, "sides": _sides}[k.arms](seat)
    return [top, *base, *back, *arms], _texture(draw)


def _legs(seat: _Seat, chart: Chart, draw: Draw) -> list[Part]:
    splay, radius = draw.between(0.0, 0.05), draw.between(0.016, 0.026)
    legs = [_leg(seat, sx, sz, splay, radius, chart) for sx in (-1, 1) for sz in (-1, 1)]
    if draw.between(0, 1) < 0.6:
        x = seat.width / 2 - 0.04 + 0.6 * splay
        size = (0.022, 0.03, seat.depth - 0.08 + 1.2 * splay)
        legs += [box((sx * x, seat.height * 0.4, 0), size, chart, bevel=0.005) for sx in (-1, 1)]
    return legs


def _leg(seat: _Seat, sx: int, sz: int, splay: float, radius: float, chart: Chart) -> Part:
    x, z = sx * (seat.width / 2 - 0.04), sz * (seat.depth / 2 - 0.04)
    path = [(x + sx * splay * k, seat.height * (1 - k), z + sz * splay * k) for k in (0, 0.5, 1)]
    return tube(np.array(path), radius * np.array([1.15, 1.0, 0.75]), chart)


def _swivel_base(seat: _Seat) -> list[Part]:
    post = np.array([[0, 0.08, 0], [0, seat.height * 0.6, 0], [0, seat.height, 0]])
    parts = [tube(post, np.array([0.035, 0.03, 0.025]), _METAL)]
    for k in range(5):
        angle = 2 * np.pi * k / 5 + np.pi / 2
        end = 0.29 * np.array([np.cos(angle), 0, np.sin(angle)])
        above = end + np.array([0, 0.06, 0])
        parts.append(tube(np.array([[0, 0.09, 0], above]), np.array([0.026, 0.017]), _METAL))
        parts.append(tube(np.array([end, above]), np.array([0.028, 0.024]), _METAL))
    return parts


def _rail_back(seat: _Seat, _kind: _Kind, _draw: Draw) -> list[Part]:
    posts = [_post(seat, x, 0.5 * seat.back, 0.016) for x in (-seat.width / 3, seat.width / 3)]
    y, z = seat.height + 0.5 * seat.back, seat.back_z - 0.5 * seat.lean
    return [*posts, _bent((seat.width * 0.85, 0.09, 0.03), y, z)]


def _slat_back(seat: _Seat, _kind: _Kind, draw: Draw) -> list[Part]:
    num_slats = int(draw.between(2, 5))
    posts = [_post(seat, x, seat.back, 0.02) for x in (-seat.width / 2 + 0.03, seat.width / 2 - 0.03)]
    size = (seat.width - 0.06, 0.3 * seat.back / num_slats + 0.03, 0.022)
    heights = np.linspace(0.35, 0.93, num_slats) * seat.back
    slats = [_bent(size, seat.height + h, seat.back_z - seat.lean * h / seat.back) for h in heights]
    return [*posts, *slats]


def _panel_back(seat: _Seat, kind: _Kind, _draw: Draw) -> list[Part]:
    height = seat.back - kind.gap
    centre = (0, seat.height + kind.gap + height / 2, seat.back_z)
    panel = box(centre, (seat.width * 0.94, height, kind.back_thickness), _CLOTH, bevel=0.03, bend=-0.03)
    shift = seat.lean * (panel.vertices[:, 1] - seat.height) / seat.back
    posts = [_post(seat, x, 0.5 * seat.back, 0.017) for x in (-0.1, 0.1)] if kind.gap else []
    return [moved(panel, z=-shift), *posts]


def _post(seat: _Seat, x: float, height: float, radius: float) -> Part:
    path = [(x, seat.height + height * k, seat.back_z - seat.lean * k) for k in (0, 0.5, 1)]
    return tube(np.array(path), radius * np.array([1.1, 1.0, 0.9]), _WOOD)


def _bent(size: tuple[float, float, float], y: float, z: float) -> Part:
    return box((0, y, z), size, _WOOD, bevel=0.008, bend=-0.025)


def _no_arms(_seat: _Seat) -> list[Part]:
    return []


def _arm_rests(seat: _Seat) -> list[Part]:
    return [part for side in (-1, 1) for part in _arm_rest(seat, side * seat.width / 2)]


def _arm_rest(seat: _Seat, x: float) -> list[Part]:
    y = seat.height + 0.2
    rest = box((x, y, 0.0), (0.05, 0.028, seat.depth * 0.85), _WOOD, bevel=0.01)
    posts = [np.array([[x, seat.height, foot], [x, y, top]]) for foot, top in ((0.12, 0.14), (-0.14, -0.14))]
    return [rest, *(tube(post, np.array([0.015, 0.014]), _WOOD) for post in posts)]


def _sides(seat: _Seat) -> list[Part]:
    x, y, size = seat.width / 2 + 0.03, seat.height + 0.2 - 0.14, (0.12, 0.32, seat.depth * 0.96)
    return [box((side * x, y, 0), size, _CLOTH, bevel=0.03) for side in (-1, 1)]


def _texture(draw: Draw) -> Array:
    wood, cloth = draw.one_of(_WOODS), draw.one_of(_CLOTHS)
    check, phase = draw.one_of((0.0, 0.0, 0.18, 0.3)), draw.between(0, 6)
    canvas = canvas_of((0, 0, 0))
    _WOOD.paint(canvas, lambda s, t: plain(s, wood) * _grain(s, t, phase)[..., None])
    _CLOTH.paint(canvas, lambda s, t: plain(s, cloth) * _weave(s, t, check)[..., None])
    _METAL.paint(canvas, lambda s, t: plain(s, (0.5, 0.51, 0.53)) * (0.9 + 0.2 * t[..., None]))
    return canvas


def _grain(s: Array, t: Array, phase: float) -> Array:
    rings = 18 * s + 1.1 * np.sin(5 * t + phase) + 0.6 * np.sin(11 * t + 7 * s)
    return np.asarray(0.92 + 0.1 * np.sin(2 * np.pi * rings) * np.sin(3 * s + phase))


def _weave(s: Array, t: Array, check: float) -> Array:
    squares = (np.floor(8 * s) + np.floor(8 * t)) % 2
    return np.asarray(1 - check * squares + 0.04 * np.sin(200 * s) * np.sin(200 * t))
