"""Several jobs in one command, each after the one before it: ``submit render ... --then pack ... --then train ...``."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer._click.core import ParameterSource  # Typer has no public name for where a value came from
from typer.core import TyperCommand

THEN = "--then"
SHARED = ("runs_dir", "cluster", "allow_config_change", "as_json")
"""Options that hold for all links once they are given: from the link that has them on, or from the first."""


class ChainCommand(TyperCommand):
    """A verb that is parsed once for each link; the parameters of the further ones are ``further(context)``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # the vendored click's own Context
        first, *others = split(args)
        rest = super().parse_args(ctx, first)
        contexts = [ctx, *(self._parsed(ctx, words) for words in others)]
        for name in SHARED:
            values = [context.params.get(name) for context in contexts]
            given = [_is_given(context, name) for context in contexts]
            for context, value in zip(contexts, spread(values, given), strict=True):
                if name in context.params:
                    context.params[name] = value
        ctx.obj = [context.params for context in contexts[1:]]
        return rest

    def _parsed(self, ctx: typer.Context, words: list[str]) -> typer.Context:
        link = typer.Context(self, info_name=ctx.info_name, parent=ctx.parent)
        with link.scope(cleanup=False):
            super().parse_args(link, words)
        return link


def further(context: typer.Context) -> Sequence[Mapping[str, Any]]:
    """Return the parameters of the links after the first one."""
    links: Sequence[Mapping[str, Any]] = context.obj or ()
    return links


def split(words: Sequence[str]) -> list[list[str]]:
    """Return the words of each link.

    >>> split(["render", "--then", "pack", "seed=1"])
    [['render'], ['pack', 'seed=1']]
    """
    links: list[list[str]] = [[]]
    for word in words:
        if word == THEN:
            links.append([])
        else:
            links[-1].append(word)
    return links


def spread(values: Sequence[Any], given: Sequence[bool]) -> list[Any]:
    """Return the value of each link: its own, or that of the nearest link before it, or the first that was given.

    >>> spread(["local", "slurm", "local"], [False, True, False])
    ['slurm', 'slurm', 'slurm']
    """
    chosen = next((value for value, is_own in zip(values, given, strict=True) if is_own), values[0])
    found = []
    for value, is_own in zip(values, given, strict=True):
        chosen = value if is_own else chosen
        found.append(chosen)
    return found


def _is_given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE
