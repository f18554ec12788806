"""The values of a configuration that is there: as YAML, by dotted path, with other paths."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from get3d_cluster.config.yaml12 import parsed, written, written_on_one_line

ConfigT = TypeVar("ConfigT")


def anchored(config: ConfigT, folder: Path) -> ConfigT:
    """Return ``config`` with every relative path taken from ``folder``: workers compute in another one.

    A text field with the metadata ``location`` is a path, too, unless it is a URL, which Path would not leave as it is.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, config)):
        value = getattr(config, field.name)
        if field.metadata.get("location") and value is not None and "://" not in value:
            values[field.name] = str(folder / value)
        else:
            values[field.name] = _anchored(value, folder)
    return cast(ConfigT, dataclasses.replace(cast(Any, config), **values))


def save_text(config: Any) -> str:
    """Return all resolved values as YAML that ``load`` turns back into an equal configuration."""
    return written(plain(config))


def updated_text(text: str, old: Any, new: Any) -> str:
    """Return the YAML of ``old`` with only what differs in ``new``: it gets no key that its reader may not know."""
    data = parsed(text) or {}
    _update(data, plain(old), plain(new))
    return written(data)


def plain(config: Any) -> dict[str, Any]:
    """Return the resolved values as nested dictionaries and lists, for YAML and JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values by dotted path."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value, f"{prefix}{field.name}.")
        else:
            values[prefix + field.name] = value
    return values


def show(value: Any) -> str:
    """Return ``value`` as it would be written on a command line or in YAML, on one line."""
    return written_on_one_line(_plain(value))


def _update(data: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old[key], dict):
            below = data[key] if isinstance(data.get(key), dict) else {}
            _update(below, old[key], value)
            if below:
                data[key] = below
        elif value != old[key]:
            data[key] = value


def _anchored(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple | list):
        return type(value)(_anchored(element, folder) for element in value)
    return anchored(value, folder) if dataclasses.is_dataclass(value) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, Path):
        return str(value)
    return [_plain(element) for element in value] if isinstance(value, tuple | list) else value
