"""What the job evaluate measured, as tables and curves. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from get3d_cluster.report.axes import short_number
from get3d_cluster.report.curves import Chart, charts
from get3d_cluster.report.reading import Evaluated, Measurement

MOST_STEPS = 6
"""Steps in a table of measurements; curves show all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationTable:
    """What was measured with the same settings."""

    title: str
    steps: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Name of a number, and its values at those steps."""
    charts: tuple[Chart, ...]


def evaluation_tables(evaluations: Sequence[Evaluated]) -> list[EvaluationTable]:
    """Return a table for each way of measuring, of its last few steps, with curves once there are two."""
    groups: dict[str, list[Evaluated]] = {}
    for each in evaluations:
        groups.setdefault(each.settings_key, []).append(each)
    return [_evaluation_table(group) for group in groups.values()]


def _evaluation_table(group: Sequence[Evaluated]) -> EvaluationTable:
    last = group[-MOST_STEPS:]
    names = list(dict.fromkeys(name for each in group for name in each.values))
    rows = [
        (name, tuple(short_number(e.values[name]) if name in e.values else "" for e in last))
        for name in names
    ]
    points = [Measurement(step=e.step, images=e.images, epoch=0, seconds=0.0, values=e.values) for e in group]
    features = f"features: {group[-1].features}, " if group[-1].features else ""
    return EvaluationTable(
        title=f"{features}settings {group[-1].settings_key[:8]}",
        steps=tuple(f"{each.step:,}" for each in last),
        rows=tuple(rows),
        charts=tuple(charts(points)) if len(group) > 1 else (),
    )
