"""What YAML holds -> values of exactly the declared types, where nothing is lost or guessed.

OmegaConf would convert text to numbers and numbers to text without a word; this refuses.
"""

import contextlib
import math
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from get3d_cluster.config.hints import members_of
from get3d_cluster.config.yaml12 import Number, Whole


class MismatchError(Exception):
    """A value is not of the declared type."""

    def __init__(self, expected: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        """Said instead of the name of the type, where that would not explain it."""


def converted(hint: Any, raw: Any) -> Any:
    """Return ``raw``, as parsed from YAML, as exactly the type ``hint``. Raises: MismatchError."""
    if len(members := members_of(hint)) > 1:
        return _alternative(members, raw)
    if several := _SEVERAL.get(typing.get_origin(hint)):
        return several(typing.get_args(hint), raw)
    if single := _SINGLE.get(hint):
        return single(raw)
    if type(raw) is not hint:
        raise MismatchError
    return raw


def _alternative(members: Sequence[Any], raw: Any) -> Any:
    for member in sorted(
        members, key=lambda member: member is str
    ):  # a number is text only if nothing else fits
        with contextlib.suppress(MismatchError):
            return converted(member, raw)
    raise MismatchError


def _literal(allowed: Sequence[Any], raw: Any) -> Any:
    for value in allowed:
        with contextlib.suppress(MismatchError):
            if converted(type(value), raw) == value:
                return value
    raise MismatchError


def _tuple(elements: Sequence[Any], raw: Any) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise MismatchError
    if elements[-1] is Ellipsis:
        elements = [elements[0]] * len(raw)
    if len(elements) != len(raw):
        raise MismatchError
    return tuple(map(converted, elements, raw))


def _whole(raw: Any) -> int:
    if not isinstance(raw, Whole):
        raise MismatchError
    return int(raw)


def _number(raw: Any) -> float:
    if not isinstance(raw, Whole | Number):
        raise MismatchError
    try:
        value = float(raw)
    except OverflowError:
        raise MismatchError from None
    if math.isnan(value):
        raise MismatchError("a number")
    return value


def _text(raw: Any) -> str:
    text = getattr(raw, "text", raw)
    if not isinstance(text, str):
        raise MismatchError
    if "${" in text or text == "???":
        raise MismatchError("text without ${...} and other than ???")
    return text


def _path(raw: Any) -> Path:
    if not (text := _text(raw)):
        raise MismatchError
    return Path(text)


_SEVERAL: dict[Any, Callable[[Sequence[Any], Any], Any]] = {Literal: _literal, tuple: _tuple}
_SINGLE: dict[Any, Callable[[Any], Any]] = {int: _whole, float: _number, str: _text, Path: _path}
