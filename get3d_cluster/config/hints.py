"""The declared types of a configuration: which there are, and what they are called."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from get3d_cluster.config.values import show

_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}
_TYPE_TEXTS = {type(None): "null", Path: "path", Ellipsis: "..."}


def hints_of(config_class: type[Any]) -> dict[str, Any]:
    """Return the type of each field that can be given."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class) if field.init}


def hint_at(config_class: type[Any], path: str) -> Any:
    """Return the type at a dotted path; None where there is no such key."""
    hint: Any = config_class
    for part in path.split("."):
        section = section_of(hint)
        hint = hints_of(section).get(part) if section else None
    return hint


def members_of(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union; a plain type is its own only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def section_of(hint: Any) -> type[Any] | None:
    """Return the dataclass that ``hint`` stands for, if any."""
    sections: Iterator[type[Any]] = filter(dataclasses.is_dataclass, members_of(hint))
    return next(sections, None)


def expected(hint: Any) -> str:
    """Return what a key takes, in words for an error."""
    if section_of(hint):
        return "a section with keys below it"
    if len(members := members_of(hint)) > 1:
        return " or ".join(expected(member) for member in members)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(show, typing.get_args(hint)))}"
    if typing.get_origin(hint) is tuple:
        return _expected_list(typing.get_args(hint))
    return _EXPECTED.get(hint, str(hint))


def _expected_list(elements: tuple[Any, ...]) -> str:
    if elements[-1] is Ellipsis:
        return f"a list like [A, B], each {expected(elements[0])}"
    return f"a list of {len(elements)}: [{', '.join(map(expected, elements))}]"


def type_text(hint: Any) -> str:
    """Return what a key takes, as short as in a list of keys."""
    if len(members := members_of(hint)) > 1:
        return " | ".join(map(type_text, members))
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(show, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"[{', '.join(map(type_text, typing.get_args(hint)))}]"
    return _TYPE_TEXTS.get(hint, getattr(hint, "__name__", str(hint)))
