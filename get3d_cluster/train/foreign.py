"""Weights in the files of the published networks: matched with ours one by one, or refused; ours written likewise.

What cannot be told for certain is never guessed: each tensor of ours has to find exactly one of theirs of equal shape,
each of theirs has to be used or to be known as no weight.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from get3d_cluster.config.yaml12 import parsed
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d import published
from get3d_cluster.get3d.config import ModelConfig
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.ops import fir_kernel
from get3d_cluster.get3d.published import NETWORKS, TABLE_OF, UNUSED, Network, Part, Row, Shape
from get3d_cluster.runtime.checkpoint_foreign import load_foreign

SEE = "docs/published_weights.md"
_LOOK = f"--list shows every tensor of both sides, --names FILE.yaml tells more names: {SEE}"
_TOLERANCE = 1e-5
OTHER_SIZE, AMBIGUOUS, MISSING, FITS_NOTHING, UNUSABLE = TROUBLES = (
    "of another size",
    "ambiguous",
    "missing",
    "that fit nothing",
    "unusable",
)
"""Kinds of what can be wrong with a tensor, what is told first before the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What a person knows of the names in a file, beyond the table."""

    networks: Mapping[str, str] = field(default_factory=dict)
    """G, G_ema, D: their keys."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of the parts of ``published.parts``."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Whole names of theirs by ours."""
    unused: tuple[str, ...] = ()
    """Patterns of theirs that are no weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One tensor of a file, or one of ours that the file lacks."""

    network: str
    theirs: str = ""
    shape: str = ""
    """Theirs, in words."""
    ours: str = ""
    kind: str
    """``matched``, ``unused``, or a kind of ``TROUBLES``."""
    how: str
    """Why it was matched (seen, described, assumed, by shape, given), why it is unused, or what is wrong."""
    way_out: str = ""
    """What to do if something is wrong; else empty."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A file and how its tensors were matched; nothing is wrong if ``troubles`` is empty."""

    path: Path
    lines: list[Line]
    state: Mapping[str, Mapping[str, Tensor]]
    """Parts of a checkpoint; whole only without troubles."""

    @property
    def troubles(self) -> list[Line]:
        """What is wrong, what matters most first."""
        wrong = [line for line in self.lines if line.kind in TROUBLES]
        return sorted(wrong, key=lambda line: TROUBLES.index(line.kind))

    def refuse_troubles(self) -> None:
        """Raises: UsageError if anything is wrong, with the first of each kind and how many there are."""
        troubles = self.troubles
        if not troubles:
            return
        first, kinds = troubles[0], Counter(line.kind for line in troubles)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise UsageError(
            f"{self.path}: {first.network} {first.theirs or first.ours} {first.how}\n"
            f"nothing was imported; of {len(self.lines)} tensors: {counted}",
            first.way_out,
        )


def read_names(path: Path | None) -> Names:
    """Return what a YAML file says of names. Raises: UsageError naming what is no such thing."""
    if path is None:
        return Names()
    way_out = f"its keys are networks, parts, names (each name: their name) and unused (a list): {SEE}"
    try:
        data = parsed(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"cannot read --names {path}: {error.strerror}", "give an existing file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--names {path} is not valid YAML: {' '.join(str(error).split())}", way_out
        ) from error
    if not isinstance(data, dict) or set(data) - {"networks", "parts", "names", "unused"}:
        raise UsageError(f"--names {path} has keys that say nothing: {', '.join(map(str, data))}", way_out)
    tables = {key: data.get(key) or {} for key in ("networks", "parts", "names")}
    unused = data.get("unused") or []
    for key, table in tables.items():
        if not isinstance(table, dict) or not all(
            isinstance(text, str) for text in [*table, *table.values()]
        ):
            raise UsageError(f"--names {path}: {key} is no table of names", way_out)
    if not isinstance(unused, list) or not all(isinstance(text, str) for text in unused):
        raise UsageError(f"--names {path}: unused is no list of patterns", way_out)
    return Names(**tables, unused=tuple(unused))


def shapes_of(config: ModelConfig) -> dict[Network, dict[str, Shape]]:
    """Return the shapes of all tensors of both networks, without making one."""
    with torch.device("meta"):
        generator, discriminator = Generator(config.generator), Discriminator(config.discriminator)
    return {
        "G": {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()},
        "D": {name: tuple(tensor.shape) for name, tensor in discriminator.state_dict().items()},
    }


def read(path: Path, config: ModelConfig, names: Names) -> Reading:
    """Match the tensors of a file with those that ``config`` describes.

    Raises: UsageError if the file cannot be read, holds other things than the three networks, or ``config`` describes
    a network that they cannot be.
    """
    published.refuse_others(config)
    found = _networks(path, names)
    shapes = shapes_of(config)
    _refuse_unknown_names(names, config, shapes)
    lines: list[Line] = []
    state = {}
    for key, part in NETWORKS.items():
        matching = _Matching(key, found[key], config, shapes[TABLE_OF[key]], names)
        lines += matching.lines()
        state[part] = matching.tensors
    return Reading(path=path, lines=lines, state=state)


def as_published(
    state: Mapping[str, Any],  # parts of a checkpoint
    config: ModelConfig,
    names: Names,
) -> dict[str, dict[str, Tensor]]:
    """Return the networks of a checkpoint under the names of the published files, filters included.

    Raises: UsageError if they are not what those files hold.
    """
    published.refuse_others(config)
    shapes = shapes_of(config)
    _refuse_unknown_names(names, config, shapes)
    pieces = published.parts(config)
    prefixes = {name: names.parts.get(name, part.prefix) for name, part in pieces.items()}
    taken: dict[str, dict[str, Tensor]] = {}
    for key, part in NETWORKS.items():
        network = TABLE_OF[key]
        tensors = {
            names.names.get(row.ours, prefixes[row.part] + row.rest): state[part][row.ours]
            .reshape(row.shape)
            .clone()
            for row in published.rows(config, shapes[network], network)
        }
        filters = {prefixes[piece] + rest: _filter() for piece, rest in published.filters(config, network)}
        if len(tensors) + len(filters) > len(tensors | filters) or len(tensors) < len(shapes[network]):
            raise UsageError("--names gives two tensors one name", f"each needs a name of its own: {SEE}")
        taken[names.networks.get(key, key)] = tensors | filters
    return taken


class _Matching:
    """How the tensors of one of their networks were matched with ours."""

    def __init__(
        self,
        key: str,
        theirs: Mapping[str, Any],
        config: ModelConfig,
        shapes: Mapping[str, Shape],
        names: Names,
    ) -> None:
        self._key = key
        self._theirs = theirs
        self._names = names
        self._shapes = shapes
        self._rows = published.rows(config, shapes, TABLE_OF[key])
        self._by_ours = {row.ours: row for row in self._rows}
        self._told: dict[str, tuple[str, str, str]] = {}
        pieces = {
            name: part for name, part in published.parts(config).items() if part.network == TABLE_OF[key]
        }
        self._prefixes = {name: self._prefix(name, part) for name, part in pieces.items()}
        self._used: Counter[str] = Counter()
        self.tensors: dict[str, Tensor] = {}

    def lines(self) -> Iterator[Line]:
        """Match; yield a line for each tensor."""
        for row in self._rows:
            yield self._match(row)
        for name, tensor in self._theirs.items():
            if not self._used[name]:
                yield self._left_over(name, tensor)

    def _prefix(self, name: str, part: Part) -> tuple[list[str], str]:
        """Return the prefixes that a part may have in this file, and how that is known."""
        if name in self._names.parts:
            return [self._names.parts[name]], "given"
        if not part.told_by:
            return [part.prefix], ""
        rows = [self._by_ours[ours] for ours in part.told_by]
        found = [
            prefix for prefix in self._candidates(rows[0]) if all(self._fits(prefix, row) for row in rows)
        ]
        if part.prefix in found or not found:
            return [part.prefix], ""
        return sorted(found), "by shape"

    def _candidates(self, row: Row) -> set[str]:
        """Return what stands before the rest of the row's name, where that ends a name."""
        whole = {name.removesuffix(row.rest) for name in self._theirs if name.endswith(row.rest)}
        return {prefix for prefix in whole if not row.rest or not prefix or prefix.endswith(".")}

    def _fits(self, prefix: str, row: Row) -> bool:
        tensor = self._theirs.get(prefix + row.rest)
        return isinstance(tensor, Tensor) and _is_same(tuple(tensor.shape), row.shape)

    def _match(self, row: Row) -> Line:
        prefixes, how = self._prefixes[row.part]
        given = self._names.names.get(row.ours)
        if given is None and len(prefixes) > 1:
            shown = " or ".join(f"{prefix}*" for prefix in prefixes[:4])
            return Line(
                network=self._key,
                ours=row.ours,
                kind=AMBIGUOUS,
                how=f"may be {shown}: shapes do not tell which",
                way_out=f"say which in --names FILE.yaml, as parts: {row.part}: PREFIX; {_LOOK}",
            )
        name, how = (given, "given") if given is not None else (prefixes[0] + row.rest, how or row.known)
        tensor = self._theirs.get(name)
        self._used[name] += 1
        if tensor is None:
            return Line(
                network=self._key,
                ours=row.ours,
                kind=MISSING,
                how=f"is missing: there is no {name}",
                way_out=_LOOK,
            )
        line = {"network": self._key, "theirs": name, "shape": _shape_of(tensor), "ours": row.ours}
        if self._used[name] > 1:
            return Line(
                **line,
                kind=AMBIGUOUS,
                how="is ambiguous: two tensors of ours would come from it",
                way_out=_LOOK,
            )
        trouble = _trouble(tensor, row)
        if trouble:
            return Line(**line, kind=trouble[0], how=trouble[1], way_out=trouble[2])
        self.tensors[row.ours] = tensor.detach().reshape(self._shapes[row.ours])
        return Line(**line, kind="matched", how=how)

    def _left_over(self, name: str, tensor: Any) -> Line:
        line = {"network": self._key, "theirs": name, "shape": _shape_of(tensor)}
        if any(fnmatchcase(name, pattern) for pattern in self._names.unused):
            return Line(**line, kind="unused", how="given")
        if not any(fnmatchcase(name, pattern) for pattern in UNUSED):
            return Line(
                **line,
                kind=FITS_NOTHING,
                how="fits nothing of ours",
                way_out=f"if it is no weight, unused: [PATTERN]; {_LOOK}",
            )
        if not _is_our_filter(tensor):
            return Line(
                **line,
                kind=UNUSABLE,
                how="is a filter other than [1, 3, 3, 1], so these weights mean another network",
                way_out=f"only networks with that filter can be read: {SEE}",
            )
        return Line(**line, kind="unused", how="the filter, the same as ours")


def _trouble(tensor: Any, row: Row) -> tuple[str, str, str] | None:
    """Return the kind of what is wrong with a tensor in the place of ``row``, what it is, and the way out."""
    if not isinstance(tensor, Tensor):
        return UNUSABLE, f"is a {type(tensor).__name__}, not a tensor", _LOOK
    if not _is_same(tuple(tensor.shape), row.shape):
        sizes = f"is {list(tensor.shape)} there, {list(row.shape)} by this configuration"
        return (
            OTHER_SIZE,
            sizes,
            f"give the configuration of that training: --config PRESET, or key=value; {SEE}",
        )
    if tensor.dtype != torch.float32:
        kind = str(tensor.dtype).removeprefix("torch.")
        way_out = "where it comes from, save it anew in float32, as it was trained: its bits are the weights"
        return UNUSABLE, f"is {kind}, not float32", way_out
    if not bool(tensor.isfinite().all()):
        return UNUSABLE, "holds numbers that are not finite", "take a file of an earlier step"
    return None


def _is_same(theirs: Shape, ours: Shape) -> bool:
    """Say whether two shapes are the same but for dimensions of 1, which move no number."""
    return [size for size in theirs if size > 1] == [size for size in ours if size > 1]


def _shape_of(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return " x ".join(map(str, tensor.shape)) or "number"


def _filter() -> Tensor:  # [4, 4]
    return fir_kernel(torch.zeros(1, 1, 1, 1))[0, 0].clone()


def _is_our_filter(tensor: Any) -> bool:
    """Compare up to a factor: gains are applied when a filter is used."""
    if not isinstance(tensor, Tensor) or tensor.shape != (4, 4) or not tensor.dtype.is_floating_point:
        return False
    scaled = tensor.float() / tensor.float().sum()
    return bool((scaled - _filter()).abs().max() < _TOLERANCE)


def _networks(path: Path, names: Names) -> dict[str, Mapping[str, Any]]:
    """Return the three networks of a file. Raises: UsageError."""
    loaded = load_foreign(path)
    if path.suffix == ".safetensors":
        loaded = _nested(loaded)
    keys = {key: names.networks.get(key, key) for key in NETWORKS}
    for key, theirs in keys.items():
        if not isinstance(loaded.get(theirs), Mapping):
            shown = ", ".join(str(name) for name in list(loaded)[:4]) + (", ..." if len(loaded) > 4 else "")
            what = "no table of tensors" if theirs in loaded else f"none; its keys are {shown or 'none'}"
            raise UsageError(
                f"{path} should hold the networks G, G_ema and D; as {theirs} it has {what}",
                f"if they go by other keys there, --names FILE.yaml with networks: {{{key}: KEY}}: {SEE}",
            )
    return {key: loaded[theirs] for key, theirs in keys.items()}


def _nested(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return tables by what stands before the first dot."""
    tables: dict[str, dict[str, Any]] = {}
    for name, tensor in flat.items():
        key, _, rest = name.partition(".")
        tables.setdefault(key, {})[rest] = tensor
    return tables


def _refuse_unknown_names(
    names: Names, config: ModelConfig, shapes: Mapping[Network, Mapping[str, Shape]]
) -> None:
    known = {
        "networks": set(NETWORKS),
        "parts": set(published.parts(config)),
        "names": {name for table in shapes.values() for name in table},
    }
    for key, words in known.items():
        unknown = sorted(set(getattr(names, key)) - words)
        if unknown:
            some = ", ".join(sorted(words)[:12]) + (", ..." if len(words) > 12 else "")
            raise UsageError(f"--names: {key} has {unknown[0]}, which is not ours", f"ours are {some}")
