"""Every key of a configuration: its type, its default, its meaning, and whether it may change."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from get3d_cluster.config.hints import hints_of, section_of, type_text


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting: where it is, what it takes and what it means."""

    path: str
    type_text: str
    default: Any
    """``dataclasses.MISSING`` if it has to be given."""
    meaning: str
    changeable: bool
    """Whether a run may come back with another value."""

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING


def keys(config_class: type[Any]) -> list[Key]:
    """Return every key in the order of declaration; its meaning is the docstring under the field."""
    return list(_keys(config_class, dataclasses.MISSING, "", changeable=False))


def _keys(config_class: type[Any], default: Any, prefix: str, *, changeable: bool) -> Iterator[Key]:
    changeable = changeable or bool(getattr(config_class, "__changeable__", False))
    hints, meanings = hints_of(config_class), _meanings(config_class)
    for field in (field for field in dataclasses.fields(config_class) if field.init):
        value = getattr(default, field.name) if dataclasses.is_dataclass(default) else _default(field)
        path, is_changeable = prefix + field.name, changeable or bool(field.metadata.get("changeable"))
        if section := section_of(hints[field.name]):
            yield from _keys(section, value, f"{path}.", changeable=is_changeable)
        else:
            yield Key(
                path=path,
                type_text=type_text(hints[field.name]),
                default=value,
                meaning=meanings.get(field.name, ""),
                changeable=is_changeable,
            )


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _meanings(config_class: type[Any]) -> dict[str, str]:
    """Return the docstrings under the fields of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for parent in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(parent):
            found |= _attribute_docstrings(parent)
    return found


def _attribute_docstrings(config_class: type[Any]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(config_class))
    except (OSError, TypeError):
        return {}  # typed at a prompt: there is no file to read
    return dict(_documented(cast(ast.ClassDef, ast.parse(source).body[0]).body))


def _documented(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())
            case _:
                pass
