"""YAML by the rules of YAML 1.2, so that an id stays what it is.

PyYAML follows 1.1, which reads 03001627 in octal, 12:30:00 as 45000, off as false and 2e-3 as text.
"""

import re
from typing import Any

import yaml


class Whole(int):
    """A whole number that remembers how it was written, for keys that take text."""

    text: str


class Number(float):
    """A number that remembers how it was written, for keys that take text."""

    text: str


def parsed(text: str) -> Any:
    """Return what ``text`` holds; its numbers are ``Whole`` and ``Number``. Raises: yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader


def written(data: Any) -> str:
    """Return ``data`` as a YAML document, one key to a line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def written_on_one_line(data: Any) -> str:
    """Return ``data`` as YAML that fits on a command line."""
    text = yaml.dump(data, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=100_000)
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(yaml.SafeLoader):
    """Reads the scalars of the core schema below, and refuses a key that is given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT002  PyYAML's
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"{key.value} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
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


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> Whole:
    text = str(loader.construct_scalar(node))
    value = Whole(text, 0)
    value.text = text
    return value


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> Number:
    text = str(loader.construct_scalar(node))
    value = Number(re.sub(r"^([-+]?)\.(?=[a-zA-Z])", r"\1", text))
    value.text = text
    return value


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # PyYAML folds other line breaks into spaces
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


def _represent_number(dumper: _Dumper, number: Any) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        f"tag:yaml.org,2002:{'int' if isinstance(number, Whole) else 'float'}", number.text
    )


for _tag, (_pattern, _firsts) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Dumper.add_representer(str, _represent_text)
for _class_of_number in (Whole, Number):
    _Dumper.add_representer(_class_of_number, _represent_number)
