"""The paper that charts are drawn on, and its axes. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 460.0
HEIGHT = 210.0
LEFT = 52.0
RIGHT = 12.0
TOP = 10.0
BOTTOM = 38.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A place on an axis."""

    at: float
    label: str


class Axis:
    """Values to places on paper."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, logarithmic: bool = False
    ) -> None:
        self._log = logarithmic
        self._low, self._high = low, high
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """Return where a value lies."""
        low, high, v = (self._warped(x) for x in (self._low, self._high, value))
        share = (v - low) / (high - low) if high > low else 0.5
        return self._start + share * (self._end - self._start)

    def ticks(self, about: int, unit: str = "") -> tuple[Tick, ...]:
        """Return about so many ticks at round values; at powers of ten if logarithmic."""
        values = _decades(self._low, self._high) if self._log else _round_steps(self._low, self._high, about)
        return self.ticks_at(values, unit)

    def ticks_at(self, values: Iterable[float], unit: str = "") -> tuple[Tick, ...]:
        """Return ticks at given values."""
        return tuple(Tick(at=round(self.at(v), 1), label=f"{short_number(v)}{unit}") for v in values)

    def _warped(self, value: float) -> float:
        return math.log10(value) if self._log else value


def short_number(value: float) -> str:
    """Return a number as people write it on an axis.

    >>> [short_number(v) for v in (0, 1500, 48000, 2.5e6, 0.05, 1.25e-5, 17.0)]
    ['0', '1.5k', '48k', '2.5M', '0.05', '1.2e-05', '17']
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"


def _round_steps(low: float, high: float, about: int) -> list[float]:
    if high <= low:
        return [low]
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * magnitude >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1.0, 3.0) if math.log10(high / low) < 2.5 else (1.0,)
    return [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
