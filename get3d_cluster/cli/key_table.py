"""How the keys of a job look: by section; a table where it fits, the meaning below the key on a narrow terminal."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from get3d_cluster.cli.output import table
from get3d_cluster.config import Key, show

SLURM_KEYS = frozenset(
    f"resources.{name}"
    for name in (
        "partition",
        "qos",
        "account",
        "constraint",
        "exclude",
        "array",
        "array_limit",
        "container",
        "mounts",
        "setup",
        "sbatch",
        "srun",
    )
)
LEAST_TABLE = 120
"""Narrower terminals get the meaning on lines of its own."""
HEADERS = ("KEY", "VALUE", "DEFAULT", "TYPE", "MEANING")
FOOTNOTE = "(*) may change when a run comes back"


def shown(keys: Sequence[Key], values: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    """Yield what is printed of ``keys`` with their resolved ``values`` on ``width`` columns."""
    groups = [(title, list(group)) for title, group in itertools.groupby(keys, _title)]
    yield _table(groups, values) if width >= LEAST_TABLE else _lines(groups, values, width)
    yield Text(FOOTNOTE)


def _title(key: Key) -> str:
    section = key.path.rpartition(".")[0].partition(".")[0]
    if section == "resources":
        return "resources, for SLURM only" if key.path in SLURM_KEYS else "resources"
    return section


def _table(groups: Sequence[tuple[str, Sequence[Key]]], values: Mapping[str, Any]) -> RenderableType:
    made = table(HEADERS, [], wrap=HEADERS[1:])
    for number, (title, group) in enumerate(groups):
        if number:
            made.add_row("")
        if title:
            made.add_row(Text(title, style="bold"))
        for key in group:
            cells = [key.path, *_value_and_default(key, values), key.type_text, _meaning(key)]
            made.add_row(*(Text(cell) for cell in cells))
    return made


def _lines(groups: Sequence[tuple[str, Sequence[Key]]], values: Mapping[str, Any], width: int) -> Text:
    made = Text()
    for title, group in groups:
        made.append(f"\n{title}\n" if title else "", style="bold")
        for key in group:
            value, default = _value_and_default(key, values)
            was = f", default {default}" if default else ""
            made.append(f"{key.path}={value}")
            made.append(f"  {key.type_text}{was}\n", style="dim")
            made.append(textwrap.indent(textwrap.fill(_meaning(key), max(20, width - 4)), "    ") + "\n")
    return made


def _value_and_default(key: Key, values: Mapping[str, Any]) -> tuple[str, str]:
    """Return both in YAML's words; the default only where the value is another."""
    default = "(required)" if key.is_required else show(key.default)
    value = show(values[key.path]) if key.path in values else default
    return value, "" if value == default else default


def _meaning(key: Key) -> str:
    return f"(*) {key.meaning}" if key.changeable else key.meaning
