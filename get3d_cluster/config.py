"""Configurations: YAML and dotted overrides <-> frozen nested dataclasses, strictly. Finds a job by its name.

Defaults are overruled by the file, the file by the overrides, an earlier override by a later one. Refused with the
key, the value and the way out: unknown keys, values of another type, interpolation. OmegaConf's structured
configurations merge the layers; what it would convert silently (text to number, number to text) is checked here.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

import yaml
from omegaconf import OmegaConf

from get3d_cluster.errors import UsageError

ConfigT = TypeVar("ConfigT")

SHORTHAND_SECTION = "resources"
"""Keys of this section may be given without its name: ``nodes=4``."""

KINDS = ("steps", "items")


class JobModule(Protocol):
    """What a file in ``jobs`` has to define."""

    Config: type[Any]
    KIND: str
    """``steps`` or ``items``, as in JobSpec."""

    def make(self, config: Any, session: Any) -> Any:
        """Build what the workers do; imports its heavy parts inside."""
        ...


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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key whose value differs between two configurations."""

    path: str
    old: Any
    new: Any
    changeable: bool


class MissingKeysError(UsageError):
    """Keys without a default were not given."""


def load(config_class: type[ConfigT], file: Path | None, overrides: Sequence[str]) -> ConfigT:
    """Return the defaults of ``config_class``, overruled by ``file``, overruled by ``overrides`` (``a.b=c``).

    Raises: UsageError naming the key, the value and the nearest valid key or the expected type.
    """
    from_file = [_Setting(key, raw, f"{file}: ") for key, raw in _read_yaml(file).items()] if file else []
    return _load(config_class, [*from_file, *map(_from_override, overrides)])


def read_run_config(config_class: type[ConfigT], path: Path) -> ConfigT:
    """Return the configuration that a run was submitted with. Raises: UsageError naming file and key."""
    return load(config_class, path, ())


def read_section(section_class: type[ConfigT], path: Path, name: str) -> ConfigT:
    """Return one section of the configuration of a run, without its job's classes. Raises: UsageError."""
    found = _read_yaml(path).get(name)
    values = found if isinstance(found, dict) else {}
    return _load(section_class, [_Setting(key, raw, f"{path}: {name}.") for key, raw in values.items()])


def anchored(config: ConfigT, folder: Path) -> ConfigT:
    """Return ``config`` with every relative path taken from ``folder``: workers compute in another one."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, config)):
        value = getattr(config, field.name)
        if isinstance(value, Path):
            values[field.name] = folder / value
        elif dataclasses.is_dataclass(value):
            values[field.name] = anchored(value, folder)
    return cast(ConfigT, dataclasses.replace(cast(Any, config), **values))


def save_text(config: Any) -> str:
    """Return all resolved values as YAML that ``load`` turns back into an equal configuration."""
    return yaml.dump(plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def plain(config: Any) -> dict[str, Any]:
    """Return the resolved values as nested dictionaries and lists, for YAML and JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def keys(config_class: type[Any]) -> list[Key]:
    """Return every key in the order of declaration; its meaning is the docstring under the field."""
    return list(_keys(config_class, dataclasses.MISSING, "", changeable=False))


def differences(old: Any, new: Any) -> list[Difference]:
    """Return the keys whose values differ, in the order of their declaration."""
    old_values, new_values = flat(old), flat(new)
    changeable = {key.path: key.changeable for key in keys(type(new))}
    paths = [*new_values, *(path for path in old_values if path not in new_values)]
    return [
        Difference(
            path=path, old=old_values.get(path), new=new_values.get(path), changeable=_at(changeable, path)
        )
        for path in paths
        if old_values.get(path) != new_values.get(path)
    ]


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
    text = yaml.dump(
        _plain(value), Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=100_000
    )
    return text.removesuffix("\n").removesuffix("\n...")


def find_job(name: str) -> JobModule:
    """Return the job called ``name``: a module of ``jobs``, or a dotted module name.

    The one place that looks up from the library to its users. Jobs import their heavy parts inside ``make``.

    Raises: UsageError with the nearest name and the list of jobs, or with what the module lacks.
    """
    full = name if "." in name else f"jobs.{name}"
    if not all(part.isidentifier() for part in full.split(".")):
        raise _unknown_job(name)
    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{full}.".startswith(f"{error.name}."):
            what = f"job {name} needs the module {error.name}, which is not installed"
            raise UsageError(what, "pip install -r requirements.txt") from error
        raise _unknown_job(name) from None
    lacking = [word for word in ("Config", "make", "KIND") if not hasattr(module, word)]
    if lacking:
        raise UsageError(
            f"{full} is no job: it lacks {', '.join(lacking)}", f"jobs are: {', '.join(job_names())}"
        )
    if module.KIND not in KINDS:
        raise UsageError(
            f"{full}: KIND={module.KIND!r} must be one of {', '.join(KINDS)}", "mend the job's file"
        )
    return cast(JobModule, module)


def job_names() -> list[str]:
    """Return the names of the modules in ``jobs``, without importing them."""
    package = importlib.import_module("jobs")
    found = pkgutil.iter_modules(package.__path__)
    return sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_"))


def job_configs_dir() -> Path:
    """Return the folder of the configurations that are kept beside the jobs."""
    return Path(next(iter(importlib.import_module("jobs").__path__))) / "configs"


# --- reading YAML by the rules of YAML 1.2, so that an id stays what it is


class _Int(int):
    """A whole number that remembers how it was written, for keys that take text."""

    text: str


class _Float(float):
    """A number that remembers how it was written, for keys that take text."""

    text: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars; 1.1 reads 03001627 in octal, 12:30:00 as 45000, off as false, 2e-3 as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT002  PyYAML's
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or YAML 1.2 would read as anything else."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012  PyYAML's
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  the name is PyYAML's
        return True


# A number with leading zeros is an id and stays text: the one departure from YAML 1.2.
_WHOLE = r"(?:0|[1-9][0-9]*)"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (rf"[-+]?{_WHOLE}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        rf"[-+]?(?:\.[0-9]+|{_WHOLE}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> _Int:
    text = str(loader.construct_scalar(node))
    value = _Int(text, 0)
    value.text = text
    return value


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> _Float:
    text = str(loader.construct_scalar(node))
    value = _Float(re.sub(r"^([-+]?)\.(?=[a-zA-Z])", r"\1", text))
    value.text = text
    return value


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # PyYAML folds other line breaks into spaces
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


for _tag, (_pattern, _firsts) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Dumper.add_representer(str, _represent_text)


# --- settings: a dotted path, a value as read, and where it was read


@dataclass(frozen=True)
class _Setting:
    path: str
    raw: Any
    source: str = ""


def _load(config_class: type[ConfigT], settings: Sequence[_Setting]) -> ConfigT:
    values: dict[str, Any] = {}
    for setting in settings:
        for path, value in _checked(config_class, setting):
            _put(values, path.split("."), value)
    merged = OmegaConf.merge(OmegaConf.structured(config_class), OmegaConf.create(values))
    if missing := sorted(OmegaConf.missing_keys(merged)):
        example = f"add {missing[0]}=VALUE; see: {_listing(config_class)}"
        raise MissingKeysError(f"{', '.join(missing)} must be given", example)
    return cast(ConfigT, _build(config_class, cast(Mapping[str, Any], OmegaConf.to_container(merged)), ""))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise UsageError(
            f"cannot read {file}: {error.strerror}", "give an existing file: --config FILE"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} is not valid YAML: {_one_line(error)}", "mend the file at that place"
        ) from error
    if data is not None and not isinstance(data, dict):
        raise UsageError(f"{file} holds no keys", "write one 'key: value' to a line")
    return {str(key): raw for key, raw in (data or {}).items()}


def _from_override(text: str) -> _Setting:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UsageError(f"{text!r} is no setting", "write key=value, with dots for sections: optim.lr=2e-3")
    try:
        raw = yaml.load(value, Loader=_Loader) if value.strip() else ""  # noqa: S506  a SafeLoader
    except yaml.YAMLError:
        raw = value  # such as *.png or @home: text that only YAML takes for something else
    return _Setting(path.strip(), raw)


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[path[-1]] = value


def _checked(config_class: type[Any], setting: _Setting) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of ``setting`` with values of exactly the declared types."""
    full = _with_section(config_class, setting.path)
    hint = _hint_at(config_class, full)
    if hint is None:
        raise _unknown_key(config_class, setting)
    section = _section(hint)
    if section is not None and isinstance(setting.raw, dict):
        for key, raw in setting.raw.items():
            yield from _checked(config_class, _Setting(f"{full}.{key}", raw, setting.source))
        return
    try:
        yield full, _convert(hint, setting.raw)
    except _MismatchError as error:
        expected = error.expected or _expected(hint)
        what = f"{setting.source}{full}={_shown(setting.raw)} must be {expected}, not {_given(setting.raw)}"
        raise UsageError(what, f"see: {_listing(config_class)}") from None


def _with_section(config_class: type[Any], path: str) -> str:
    hints = _hints(config_class)
    section = _section(hints.get(SHORTHAND_SECTION))
    known_there = section is not None and path in _hints(section)
    return f"{SHORTHAND_SECTION}.{path}" if path not in hints and known_there else path


def _unknown_key(config_class: type[Any], setting: _Setting) -> UsageError:
    known = [key.path for key in keys(config_class)]
    by_last = {path.rpartition(".")[2]: path for path in reversed(known)}
    near = difflib.get_close_matches(setting.path, known, n=1) or [
        by_last[last] for last in difflib.get_close_matches(setting.path.rpartition(".")[2], by_last, n=1)
    ]
    hint = f"; the nearest is {near[0]}" if near else ""
    return UsageError(
        f"{setting.source}unknown key {setting.path}{hint}", f"all keys: {_listing(config_class)}"
    )


def _listing(config_class: type[Any]) -> str:
    return f"python launch.py config {config_class.__module__.removeprefix('jobs.')}"


# --- types


class _MismatchError(Exception):
    """A value is not of the declared type."""

    def __init__(self, expected: str = "") -> None:
        super().__init__(expected)
        self.expected = expected


def _hints(config_class: Any) -> dict[str, Any]:
    """Return the type of each field that can be given."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class) if field.init}


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union; a plain type is its own only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _section(hint: Any) -> type[Any] | None:
    return next(
        (cast(type[Any], member) for member in _members(hint) if dataclasses.is_dataclass(member)), None
    )


def _hint_at(config_class: type[Any], path: str) -> Any:
    hint: Any = config_class
    for part in path.split("."):
        section = _section(hint)
        hint = _hints(section).get(part) if section else None
    return hint


def _convert(hint: Any, raw: Any) -> Any:
    """Return ``raw`` as exactly the type ``hint``, where nothing is lost or guessed."""
    origin = typing.get_origin(hint)
    if len(members := _members(hint)) > 1:
        return _convert_union(members, raw)
    if origin is Literal:
        return _convert_literal(typing.get_args(hint), raw)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), raw)
    if hint is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return _convert_float(raw)
    if hint in (str, Path):
        return _convert_text(raw) if hint is str else _convert_path(raw)
    if (
        hint in (type(None), bool, int)
        and isinstance(raw, hint)
        and (hint is bool or not isinstance(raw, bool))
    ):
        return raw if hint is not int else int(raw)
    raise _MismatchError


def _convert_union(members: Sequence[Any], raw: Any) -> Any:
    for member in sorted(
        members, key=lambda member: member is str
    ):  # a number is text only if nothing else fits
        try:
            return _convert(member, raw)
        except _MismatchError:
            continue
    raise _MismatchError


def _convert_literal(allowed: Sequence[Any], raw: Any) -> Any:
    for value in allowed:
        if type(value) is str and value == getattr(raw, "text", raw):
            return value
        same_kind = isinstance(raw, type(value)) and isinstance(raw, bool) == isinstance(value, bool)
        if same_kind and type(value) is not str and value == raw:
            return value
    raise _MismatchError


def _convert_tuple(elements: Sequence[Any], raw: Any) -> tuple[Any, ...]:
    if not isinstance(raw, list | tuple):
        raise _MismatchError
    if elements[-1] is Ellipsis:
        elements = [elements[0]] * len(raw)
    if len(elements) != len(raw):
        raise _MismatchError
    return tuple(_convert(element, value) for element, value in zip(elements, raw, strict=True))


def _convert_text(raw: Any) -> str:
    text = getattr(raw, "text", raw)
    if not isinstance(text, str):
        raise _MismatchError
    if "${" in text or text == "???":
        raise _MismatchError("text without ${...} and other than ???")
    return text


def _convert_path(raw: Any) -> Path:
    if not (text := _convert_text(raw)):
        raise _MismatchError
    return Path(text)


def _convert_float(raw: float) -> float:
    try:
        value = float(raw)
    except OverflowError:
        raise _MismatchError from None
    if math.isnan(value):
        raise _MismatchError("a number")
    return value


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}
_TYPE_TEXTS = {type(None): "null", Path: "path"}


def _expected(hint: Any) -> str:
    if _section(hint):
        return "a section with keys below it"
    if len(members := _members(hint)) > 1:
        return " or ".join(_expected(member) for member in members)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(show, typing.get_args(hint)))}"
    if typing.get_origin(hint) is tuple:
        elements = typing.get_args(hint)
        if elements[-1] is Ellipsis:
            return f"a list like [A, B], each {_expected(elements[0])}"
        return f"a list of {len(elements)}: [{', '.join(_expected(element) for element in elements)}]"
    return _NAMES.get(hint, str(hint))


def _given(raw: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a section"}
    return next(
        (name for kind, name in kinds.items() if isinstance(raw, kind)), "null" if raw is None else "a list"
    )


def _shown(raw: Any) -> str:
    """Return ``raw`` as it was written, shortened."""
    words = {"True": "true", "False": "false", "None": "null"}
    if isinstance(raw, list | tuple):
        text = f"[{', '.join(map(_shown, raw))}]"
    else:
        text = str(getattr(raw, "text", raw))
        text = text if isinstance(raw, str) else words.get(text, text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type_text(hint: Any) -> str:
    if len(members := _members(hint)) > 1:
        return " | ".join(_type_text(member) for member in members)
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(show, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        elements = [
            "..." if element is Ellipsis else _type_text(element) for element in typing.get_args(hint)
        ]
        return f"[{', '.join(elements)}]"
    return _TYPE_TEXTS.get(hint, getattr(hint, "__name__", str(hint)))


# --- instances


def _build(config_class: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    given: dict[str, Any] = {}
    for name, hint in _hints(config_class).items():
        section, value = _section(hint), values[name]
        is_below = section is not None and isinstance(value, Mapping)
        given[name] = _build(cast(type[Any], section), value, f"{prefix}{name}.") if is_below else value
    try:
        return config_class(**given)
    except ValueError as error:
        raise UsageError(
            _prefixed(config_class, prefix, str(error)), f"see: {_listing(config_class)}"
        ) from None
    except UsageError as error:
        raise UsageError(_prefixed(config_class, prefix, error.what), error.way_out) from None


def _prefixed(config_class: type[Any], prefix: str, message: str) -> str:
    first = re.split(r"\W", message, maxsplit=1)[0]
    if first in _hints(config_class):
        return prefix + message
    return f"{prefix.removesuffix('.')}: {message}" if prefix else message


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, Path):
        return str(value)
    return [_plain(element) for element in value] if isinstance(value, tuple | list) else value


# --- keys and their meanings


def _keys(config_class: type[Any], default: Any, prefix: str, *, changeable: bool) -> Iterator[Key]:
    changeable = changeable or bool(getattr(config_class, "__changeable__", False))
    meanings = _meanings(config_class)
    for field in dataclasses.fields(config_class):
        if not field.init:
            continue
        hint = _hints(config_class)[field.name]
        value = getattr(default, field.name) if dataclasses.is_dataclass(default) else _default(field)
        path, is_changeable = prefix + field.name, changeable or bool(field.metadata.get("changeable"))
        if section := _section(hint):
            yield from _keys(section, value, f"{path}.", changeable=is_changeable)
        else:
            meaning = meanings.get(field.name, "")
            yield Key(
                path=path,
                type_text=_type_text(hint),
                default=value,
                meaning=meaning,
                changeable=is_changeable,
            )


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _at(changeable: Mapping[str, bool], path: str) -> bool:
    """Return whether ``path`` may change: a section that is null now is judged by the keys below it."""
    below = [value for key, value in changeable.items() if key == path or key.startswith(f"{path}.")]
    return bool(below) and all(below)


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
    body = cast(ast.ClassDef, ast.parse(source).body[0]).body
    return dict(_documented(body))


def _documented(body: Iterable[ast.stmt]) -> Iterator[tuple[str, str]]:
    previous: ast.stmt | None = None
    for statement in body:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if is_text and isinstance(previous, ast.AnnAssign) and isinstance(previous.target, ast.Name):
            yield previous.target.id, " ".join(str(statement.value.value).split())  # type: ignore[attr-defined]  # is_text
        previous = statement


def _unknown_job(name: str) -> UsageError:
    names = job_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"there is no job {name}{hint}", f"jobs are: {', '.join(names) or 'none'}")
