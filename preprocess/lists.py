"""Which models are asked for: lists of ids, one a line, or ShapeNet's all.csv with its column ``split``."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from get3d_cluster.errors import UsageError

COLUMNS = ("synsetId", "modelId", "split")
"""Of ShapeNet's all.csv."""


class Named(Protocol):
    """A model by its name."""

    @property
    def synset(self) -> str: ...

    @property
    def model(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The models of some lists. A name without a synset counts in each of them."""

    names: frozenset[str]
    """``<id>`` or ``<synset>/<id>``."""
    source: str
    """The lists, for messages."""

    def why_not(self, synset: str, model: str) -> str:
        """Say why a model is not asked for; empty if it is."""
        is_listed = model in self.names or f"{synset}/{model}" in self.names
        return "" if is_listed else f"not in {self.source}"

    def missing(self, *found: Sequence[Named]) -> Iterator[tuple[str, str]]:
        """Yield the names that nothing found has, and what to say of them."""
        present = {
            name for each in found for item in each for name in (item.model, f"{item.synset}/{item.model}")
        }
        for name in sorted(self.names - present):
            yield name, f"in {self.source}, but not there"


def read_lists(paths: Sequence[Path], splits: Sequence[str] = ()) -> Wanted | None:
    """Return the models of all lists together; None if there are no lists, which means every model.

    ``splits`` chooses among the rows of all.csv; empty takes all of them.

    Raises: UsageError if a list is missing, empty or no text, or a split is in none of them.
    """
    if not paths:
        if splits:
            raise UsageError(
                f"splits={list(splits)} chooses from no list", "set lists= to ShapeNet's all.csv"
            )
        return None
    names: set[str] = set()
    for path in paths:
        text = _text(path)
        names |= _of_table(path, text, splits) if path.suffix == ".csv" else _of_lines(path, text, splits)
    source = ", ".join(path.name for path in paths)
    return Wanted(names=frozenset(names), source=f"{source} ({', '.join(splits)})" if splits else source)


def _of_lines(path: Path, text: str, splits: Sequence[str]) -> set[str]:
    if splits:
        raise UsageError(
            f"{path} has no column 'split': it is a list of ids",
            "leave out splits=, or give ShapeNet's all.csv",
        )
    lines = (line.strip() for line in text.splitlines())
    names = {line.strip("/") for line in lines if line and not line.startswith("#")}
    if not names:
        raise UsageError(f"{path} names no model", "write one id a line, or <synset>/<id>")
    return names


def _of_table(path: Path, text: str, splits: Sequence[str]) -> set[str]:
    rows = list(csv.DictReader(text.splitlines(), restval=""))
    missing = [column for column in COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise UsageError(
            f"{path} has no column {missing[0]}", f"expected is a first line with {', '.join(COLUMNS)}"
        )
    present = {row["split"] for row in rows}
    for split in splits:
        if split not in present:
            raise UsageError(
                f"splits={list(splits)}: {path} has no {split!r}", f"it has {', '.join(sorted(present))}"
            )
    # A spreadsheet takes the zeros that synsets begin with.
    return {
        f"{row['synsetId'].zfill(8)}/{row['modelId']}" for row in rows if not splits or row["split"] in splits
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}", "set lists= to an existing file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text: {error}", "save it as UTF-8") from error
