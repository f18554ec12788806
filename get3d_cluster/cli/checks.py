"""What one check of ``doctor`` found, and how all of them are shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from get3d_cluster.cli.output import table

STYLES = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of ``doctor``."""

    name: str
    state: str
    """``ok``, ``note`` (nothing to say against it), ``warn`` (something optional is missing) or ``fail``."""
    found: str
    what_to_do: str = ""
    ask: str = ""
    """What to ask the cluster's administrator for: one sentence for a mail."""


def shown(checks: Sequence[Check]) -> Iterator[RenderableType]:
    """Yield the table of ``checks``, then what to ask the administrator for."""
    made = table(["", "WHAT", "FOUND, -> WHAT TO DO"], [], wrap=["FOUND, -> WHAT TO DO"])
    for check in checks:
        advice = f"\n-> {check.what_to_do}" if check.what_to_do else ""
        made.add_row(
            Text(check.state, style=STYLES[check.state]), Text(check.name), Text(f"{check.found}{advice}")
        )
    yield made
    asks = [check.ask for check in checks if check.ask]
    if asks:
        yield Text("\nTo ask the administrator of the cluster, a sentence each:", style="bold")
    for ask in asks:
        yield Padding(Text(ask), (0, 0, 0, 2))
