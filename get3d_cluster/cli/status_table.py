"""How the rows of ``status`` look: a table where it fits, two lines a run on a narrow terminal, one line in a log."""

import re
import textwrap
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from get3d_cluster.cli.output import duration, table
from get3d_cluster.cli.status import Row

HEADERS = (
    "NAME",
    "STATE",
    "EPOCH/STEP",
    "%",
    "ETA",
    "ATTEMPT",
    "PREEMPTED",
    "FAILED",
    "LAST-CHECKPOINT",
    "GOODPUT",
    "NODES",
    "WHY",
)
WRAPPED = ("NODES", "WHY")
LEAST_WRAPPED = (12, 24)
"""Columns that NODES and WHY need at least to be readable side by side with the others."""
FIRST_LINE = 6
"""Cells that stand on the first of two lines."""
_NUMBERED = re.compile(r"(.*?)(\d+)")


def status_table(shown: Sequence[Row], width: int) -> RenderableType:
    """Return the rows for people, on a terminal of ``width`` columns."""
    cells = [_cells(row) for row in shown]
    details = [_details(row) for row in shown]
    fixed = [max(len(line[column]) for line in [HEADERS, *cells]) for column in range(len(HEADERS) - 2)]
    wrapped = [
        min(max(len(line[column]) for line in [HEADERS, *cells]), least)
        for column, least in zip((-2, -1), LEAST_WRAPPED, strict=True)
    ]
    if sum(fixed) + sum(wrapped) + 2 * (len(HEADERS) - 1) <= width:
        return table(HEADERS, cells, wrap=WRAPPED)
    return _two_lines(cells, details, fixed[:FIRST_LINE], width)


def one_line(row: Row) -> str:
    """Return the progress of a run as one line, for a person who watches it."""
    percent = "" if row.percent is None else f"  {row.percent:.1f} %"
    eta = f"  {duration(row.eta_s)} left" if row.eta_s is not None else ""
    named = f"attempt {row.attempt}"
    attempt = f"  {named}" if row.attempt and named not in row.why else ""
    return (
        f"{row.name}  {row.state}  {_position(row)}{percent}{eta}{attempt}{f'  {row.why}' if row.why else ''}"
    )


def short_list(hosts: Sequence[str]) -> str:
    """Return the names of nodes as SLURM writes them.

    >>> short_list(["node1", "node2", "node3", "big7"])
    'big7,node[1-3]'
    """
    alone, numbered = [], dict[tuple[str, int], list[int]]()
    for host in dict.fromkeys(hosts):
        if found := _NUMBERED.fullmatch(host):
            stem, digits = found.groups()
            numbered.setdefault((stem, len(digits) if digits.startswith("0") else 0), []).append(int(digits))
        else:
            alone.append(host)
    grouped = [
        f"{stem}{_ranges(sorted(numbers), digits)}" for (stem, digits), numbers in sorted(numbered.items())
    ]
    return ",".join([*alone, *grouped])


def _ranges(numbers: Sequence[int], digits: int) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    text = ",".join("-".join(f"{number:0{digits}d}" for number in span) for span in spans)
    return text if len(numbers) == 1 else f"[{text}]"


def _two_lines(
    cells: Sequence[Sequence[str]], details: Sequence[str], widths: Sequence[int], width: int
) -> Group:
    lines = [Text(_padded(HEADERS, widths), style="bold")]
    for row, said in zip(cells, details, strict=True):
        lines.append(Text(_padded(row, widths)))
        lines += [Text(f"    {line}", style="dim") for line in textwrap.wrap(said, max(20, width - 4))]
    return Group(*lines)


def _padded(words: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=False)).rstrip()


def _details(row: Row) -> str:
    saved = "" if row.saved_age_s is None else f"checkpoint {duration(row.saved_age_s)} ago"
    said = [
        f"preempted {row.preempted}" if row.preempted else "",
        f"failed {row.failed}" if row.failed else "",
        saved,
        f"{row.at_risk_steps} steps at risk" if row.at_risk_steps else "",
        "" if row.goodput is None else f"goodput {100 * row.goodput:.0f} %",
        f"on {short_list(row.hosts)}" if row.hosts else "",
    ]
    facts = ", ".join(part for part in said if part)
    return "; ".join(part for part in (facts, row.why) if part)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        row.state,
        _position(row),
        "-" if row.percent is None else f"{row.percent:.1f}",
        duration(row.eta_s),
        str(row.attempt or "-"),
        str(row.preempted),
        str(row.failed),
        _checkpoint(row),
        "-" if row.goodput is None else f"{100 * row.goodput:.0f} %",
        short_list(row.hosts) or "-",
        row.why,
    ]


def _checkpoint(row: Row) -> str:
    at_risk = f" ({row.at_risk_steps})" if row.at_risk_steps else ""
    if row.saved_age_s is None:
        return f"none{at_risk}" if at_risk else "-"
    return f"{duration(row.saved_age_s)} ago{at_risk}"


def _position(row: Row) -> str:
    of = f"/{row.num_steps}" if row.num_steps else ""
    return f"{row.step}{of}" if row.kind == "items" else f"{row.epoch} / {row.step}{of}"
