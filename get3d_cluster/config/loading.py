"""Files and overrides -> a checked instance of the dataclass of a configuration."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf

from get3d_cluster.config.conversion import MismatchError, converted
from get3d_cluster.config.hints import expected, hint_at, hints_of, section_of
from get3d_cluster.config.listing import keys
from get3d_cluster.config.yaml12 import parsed
from get3d_cluster.errors import UsageError

ConfigT = TypeVar("ConfigT")

_SHORTHAND_SECTION = "resources"
"""Keys of this section may be given without its name: ``nodes=4``."""


class MissingKeysError(UsageError):
    """Keys without a default were not given."""


@dataclass(frozen=True)
class _Setting:
    """A dotted path, a value as read, and where it was read."""

    path: str
    raw: Any
    source: str = ""


def load(config_class: type[ConfigT], file: Path | None, overrides: Sequence[str]) -> ConfigT:
    """Return the defaults of ``config_class``, overruled by ``file``, overruled by ``overrides`` (``a.b=c``).

    Raises: UsageError naming the key, the value and the nearest valid key or the expected type.
    """
    from_file = [_Setting(key, raw, f"{file}: ") for key, raw in _read_yaml(file).items()] if file else []
    return _merged(config_class, [*from_file, *map(_from_override, overrides)])


def read_run_config(config_class: type[ConfigT], path: Path) -> ConfigT:
    """Return the configuration that a run was submitted with. Raises: UsageError naming file and key."""
    return load(config_class, path, ())


def read_section(section_class: type[ConfigT], path: Path, name: str) -> ConfigT:
    """Return one section of the configuration of a run, without its job's classes. Raises: UsageError."""
    found = _read_yaml(path).get(name)
    values = found if isinstance(found, dict) else {}
    settings = [_Setting(key, raw, f"{path}: {name}.") for key, raw in values.items()]
    try:
        return _merged(section_class, settings)
    except UsageError as error:
        raise UsageError(error.what, f"mend the section {name} of {path}") from error


def read_section_or_default(section_class: type[ConfigT], path: Path, name: str) -> ConfigT:
    """Return ``read_section``, or the defaults where the section cannot be read: for those who cannot refuse."""
    try:
        return read_section(section_class, path, name)
    except UsageError:
        return section_class()


# --- reading


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data = parsed(file.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"cannot read {file}: {error.strerror}"
        raise UsageError(what, "give an existing file: --config FILE") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = f"{file} is not valid YAML: {_one_line(error)}"
        raise UsageError(what, "mend the file at that place") from error
    if data is not None and not isinstance(data, dict):
        raise UsageError(f"{file} holds no keys", "write one 'key: value' to a line")
    return {str(key): raw for key, raw in (data or {}).items()}


def _from_override(text: str) -> _Setting:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UsageError(
            f"{text!r} is no setting", "write key=value, with dots for sections: resources.nodes=2"
        )
    try:
        raw = parsed(value) if value.strip() else ""
    except yaml.YAMLError:
        raw = value  # such as *.png or @home: text that only YAML takes for something else
    return _Setting(path.strip(), raw)


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


# --- checking


def _checked(config_class: type[Any], setting: _Setting) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of ``setting`` with values of exactly the declared types."""
    full = _with_section(config_class, setting.path)
    hint = hint_at(config_class, full)
    if hint is None:
        raise _unknown_key(config_class, setting)
    if section_of(hint) and isinstance(setting.raw, dict):
        for key, raw in setting.raw.items():
            yield from _checked(config_class, _Setting(f"{full}.{key}", raw, setting.source))
        return
    try:
        yield full, converted(hint, setting.raw)
    except MismatchError as error:
        takes, given = error.expected or expected(hint), _kind(setting.raw)
        what = f"{setting.source}{full}={_shown(setting.raw)} must be {takes}, not {given}"
        raise UsageError(what, f"see: {_listing(config_class)}") from None


def _with_section(config_class: type[Any], path: str) -> str:
    hints = hints_of(config_class)
    section = section_of(hints.get(_SHORTHAND_SECTION))
    is_below = path not in hints and section is not None and path in hints_of(section)
    return f"{_SHORTHAND_SECTION}.{path}" if is_below else path


def _unknown_key(config_class: type[Any], setting: _Setting) -> UsageError:
    known = [key.path for key in keys(config_class)]
    by_last = {path.rpartition(".")[2]: path for path in reversed(known)}
    near = difflib.get_close_matches(setting.path, known, n=1) or [
        by_last[last] for last in difflib.get_close_matches(setting.path.rpartition(".")[2], by_last, n=1)
    ]
    hint = f"; the nearest is {near[0]}" if near else ""
    what = f"{setting.source}unknown key {setting.path}{hint}"
    return UsageError(what, f"all keys: {_listing(config_class)}")


def _listing(config_class: type[Any]) -> str:
    return f"python launch.py config {config_class.__module__.removeprefix('jobs.')}"


def _kind(raw: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a section"}
    found = (name for kind, name in kinds.items() if isinstance(raw, kind))
    return next(found, "null" if raw is None else "a list")


def _shown(raw: Any) -> str:
    """Return ``raw`` as it was written, shortened."""
    if isinstance(raw, list):
        text = f"[{', '.join(map(_shown, raw))}]"
    elif raw is None or isinstance(raw, bool):
        text = {None: "null", True: "true", False: "false"}[raw]
    else:
        text = str(getattr(raw, "text", raw))
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- merging


def _merged(config_class: type[ConfigT], settings: Sequence[_Setting]) -> ConfigT:
    values: dict[str, Any] = {}
    for setting in settings:
        for path, value in _checked(config_class, setting):
            _put(values, path.split("."), value)
    merged = OmegaConf.merge(OmegaConf.structured(config_class), values)
    if missing := _required_leaves(config_class, OmegaConf.missing_keys(merged)):
        example = f"add {missing[0]}=VALUE; see: {_listing(config_class)}"
        raise MissingKeysError(f"{', '.join(missing)} must be given", example)
    found = cast(Mapping[str, Any], OmegaConf.to_container(merged))
    return cast(ConfigT, _instance(config_class, found, "", f"see: {_listing(config_class)}"))


def _required_leaves(config_class: type[Any], missing: Collection[str]) -> list[str]:
    """Return the keys that have to be given; a section that is missing as a whole stands for those below it."""
    found: set[str] = set()
    for path in missing:
        below = [key for key in keys(config_class) if f"{key.path}.".startswith(f"{path}.")]
        found |= {key.path for key in below if key.is_required} or {key.path for key in below[:1]}
    return sorted(found)


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}  # a section that was null comes into being
        values = values[part]
    values[path[-1]] = value


def _instance(config_class: type[Any], values: Mapping[str, Any], prefix: str, way_out: str) -> Any:
    given = dict(values)
    for name, hint in hints_of(config_class).items():
        section = section_of(hint)
        if section is not None and isinstance(values[name], Mapping):
            given[name] = _instance(section, values[name], f"{prefix}{name}.", way_out)
    try:
        return config_class(**given)
    except ValueError as error:
        what = str(error)
    except UsageError as error:
        what, way_out = error.what, error.way_out
    raise UsageError(_prefixed(config_class, prefix, what), way_out)


def _prefixed(config_class: type[Any], prefix: str, message: str) -> str:
    first = re.split(r"\W", message, maxsplit=1)[0]
    if first in hints_of(config_class):
        return prefix + message
    return f"{prefix.removesuffix('.')}: {message}" if prefix else message
