"""Results as one JSON file a checkpoint, and as a table. The schema is in docs/evaluating.md. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number, and what it was made from."""

    name: str
    value: float
    num_generated: int
    """Images or shapes."""
    num_reference: int = 0
    """Real images or reference shapes; 0 if it is about generated ones alone."""
    features: Mapping[str, str] | None = None
    """Name and digest of what images were compared by."""
    unit: str = ""
    error: float | None = None
    """Standard error over subsets."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A number that could not be measured."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured of one checkpoint."""

    run: str
    step: int
    images: int
    checkpoint: str
    """Digest of its state."""
    seed: int
    settings: Mapping[str, Any]
    """Everything that decides the numbers."""
    settings_key: str
    """Digest of it: numbers with the same one can be compared."""
    metrics: Sequence[Metric]
    left_out: Sequence[LeftOut] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        values = asdict(self)
        values["metrics"] = [
            {k: v for k, v in asdict(m).items() if v not in ("", None)} for m in self.metrics
        ]
        return {"format": FORMAT, **values}


def finite_only(metrics: Sequence[Metric]) -> tuple[list[Metric], list[LeftOut]]:
    """Leave out what is no number."""
    good = [metric for metric in metrics if math.isfinite(metric.value)]
    bad = [metric for metric in metrics if not math.isfinite(metric.value)]
    why = "it came out as {}: no generated shape, or no reference, has a surface"
    return good, [LeftOut(name=each.name, why=why.format(each.value)) for each in bad]


def table_of(evaluation: Evaluation) -> str:
    """Return the numbers as text in columns."""
    rows = [("metric", "value", "generated", "reference", "features")]
    for metric in evaluation.metrics:
        value = f"{metric.value:.5g}" + (f" ± {metric.error:.2g}" if metric.error is not None else "")
        counts = f"{metric.num_generated:,}", f"{metric.num_reference:,}" if metric.num_reference else ""
        features = f"{metric.features['name']} {metric.features['digest'][:8]}" if metric.features else ""
        rows.append((metric.name, value, *counts, features))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{evaluation.run}, step {evaluation.step:,}, {evaluation.images:,} images, seed {evaluation.seed}"
    ]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"left out: {each.name}: {each.why}" for each in evaluation.left_out]
    return "\n".join(lines) + "\n"
