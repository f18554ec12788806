"""How the published weight files name what ours are called: one table, read in both directions. Pure, no torch.

Names come from a written description of the networks ("described"), from error messages and logs that users posted
("seen"), or from us where neither says ("assumed"). A prefix that is not certain is looked for in the file by a shape
that nothing else has; where that does not settle it, the import is refused. docs/published_weights.md has the reasons.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.config import GeneratorConfig, ModelConfig

Shape = tuple[int, ...]
Known = Literal["seen", "described", "assumed"]
Network = Literal["G", "D"]

NETWORKS = {"G": "generator", "G_ema": "generator_ema", "D": "discriminator"}
"""Keys of their file, and the parts of a checkpoint that they become. Source: description, 2.2 and 3.4."""
TABLE_OF: Mapping[str, Network] = {"G": "G", "G_ema": "G", "D": "D"}
"""Which table each of them goes by."""
FILTER = "resample_filter"
UNUSED = (f"*.{FILTER}",)
"""Tensors of theirs that are no weights: the filter [1, 3, 3, 1], which ours computes; its values are compared."""
_CERTAINTY: Sequence[Known] = ("seen", "described", "assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of their networks: what all its names begin with."""

    network: Network
    prefix: str
    known: Known
    told_by: tuple[str, ...] = ()
    """Our tensors by whose shapes another prefix is recognised; empty: the prefix is certain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One tensor of ours and the name that it has in their file."""

    ours: str
    part: str
    rest: str
    """Their name after the prefix of the part."""
    known: Known
    shape: Shape
    """Theirs: with two more dimensions of 1 for a kernel of one pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    """Our names of one kind; the groups of ``ours`` fill ``part`` and ``rest``."""

    network: Network
    ours: str
    part: str
    rest: str
    known: Known
    is_pixel: bool = False
    """Ours is a matrix, theirs a kernel of one pixel."""


_LEAF = r"(?P<leaf>weight|bias|affine\.weight|affine\.bias)"
_PLAIN = r"(?P<leaf>weight|bias)"
_HEAD = r"(?P<head>rgb|mask)"

_RULES = (
    # No scale anywhere: both store weights as N(0, 1), those of mappings divided by the rate multiplier of 0.01, biases
    # likewise; gains are applied when a layer runs (description, 1.2 to 1.4 and 3.4). No weight belongs to a slot.
    _Rule(
        network="G",
        ours=rf"mapping_(?P<which>geo|tex)\.layers\.(?P<i>\d+)\.{_PLAIN}",
        part="mapping_{which}",
        rest="fc{i}.{leaf}",
        known="seen",
    ),
    _Rule(network="G", ours=r"w_avg_(?P<which>geo|tex)", part="mapping_{which}", rest="w_avg", known="seen"),
    _Rule(network="G", ours=r"trunk\.constant", part="constant", rest="", known="assumed"),
    # Kernels as they are: [out, in, 3, 3]; doubling convolutions are transposed ones of the stored kernel (1.3).
    _Rule(
        network="G",
        ours=rf"trunk\.blocks\.(?P<block>\d+)\.convs\.(?P<conv>\d+)\.(?:{_LEAF}|(?P<extra>noise_strength|noise))",
        part="trunk",
        rest="b{size}.conv{place}.{leaf}{extra}",
        known="seen",
    ),
    # Channels plane by plane, (x, y), (y, z), (x, z), on both sides (1.4).
    _Rule(
        network="G",
        ours=rf"trunk\.blocks\.(?P<block>\d+)\.to_(?P<which>geo|tex)\.{_LEAF}",
        part="trunk",
        rest="b{size}.to{which}.{leaf}",
        known="seen",
        is_pixel=True,
    ),
    # Distances are positive inside on both sides (1.7).
    _Rule(
        network="G",
        ours=rf"(?P<which>sdf|deformation|texture)_field\.layers\.(?P<i>\d+)\.{_LEAF}",
        part="{which}_field",
        rest="layers.{i}.{leaf}",
        known="seen",
    ),
    _Rule(
        network="G", ours=rf"colour\.{_LEAF}", part="colour", rest="{leaf}", known="assumed", is_pixel=True
    ),
    _Rule(
        network="D",
        ours=rf"{_HEAD}\.entries\.(?P<block>\d+)\.{_PLAIN}",
        part="{head}",
        rest="b{size}.fromrgb.{leaf}",
        known="seen",
    ),
    _Rule(
        network="D",
        ours=rf"{_HEAD}\.blocks\.(?P<block>\d+)\.(?P<layer>same|down|around)\.{_PLAIN}",
        part="{head}",
        rest="b{size}.{their_layer}.{leaf}",
        known="seen",
    ),
    _Rule(
        network="D",
        ours=rf"{_HEAD}\.last\.(?P<layer>conv|hidden|output)\.{_PLAIN}",
        part="{head}",
        rest="b4.{their_layer}.{leaf}",
        known="assumed",
    ),
    _Rule(
        network="D",
        ours=rf"{_HEAD}\.last\.camera\.embed\.{_PLAIN}",
        part="{head}",
        rest="mapping.embed.{leaf}",
        known="assumed",
    ),
    _Rule(
        network="D",
        ours=rf"{_HEAD}\.last\.camera\.mapping\.layers\.(?P<i>\d+)\.{_PLAIN}",
        part="{head}",
        rest="mapping.fc{i}.{leaf}",
        known="assumed",
    ),
)
_THEIR_LAYERS = {
    "same": "conv0",
    "down": "conv1",
    "around": "skip",
    "conv": "conv",
    "hidden": "fc",
    "output": "out",
}
_THEIR_EXTRAS = {"noise": "noise_const"}


def parts(config: ModelConfig) -> dict[str, Part]:
    """Return the pieces of their networks by our names of them."""
    last = config.generator.fields.num_hidden
    synthesis = "synthesis.generator."
    return {
        "mapping_geo": Part(network="G", prefix="mapping_geo.", known="described"),
        "mapping_tex": Part(network="G", prefix="mapping.", known="described"),
        "trunk": Part(network="G", prefix=f"{synthesis}tri_plane_synthesis.", known="seen"),
        "constant": Part(
            network="G",
            prefix=f"{synthesis}tri_plane_synthesis.b4.const",
            known="assumed",
            told_by=("trunk.constant",),
        ),
        "sdf_field": _field("mlp_synthesis_sdf", "sdf_field", last, "assumed"),
        "deformation_field": _field("mlp_synthesis_def", "deformation_field", last, "assumed"),
        "texture_field": _field("mlp_synthesis_tex", "texture_field", last, "seen"),
        "colour": Part(
            network="G",
            prefix="synthesis.to_rgb.",
            known="assumed",
            told_by=("colour.weight", "colour.affine.weight", "colour.bias"),
        ),
        "rgb": Part(network="D", prefix="rgb.", known="assumed", told_by=("rgb.entries.0.weight",)),
        "mask": Part(network="D", prefix="mask.", known="assumed", told_by=("mask.entries.0.weight",)),
    }


def rows(
    config: ModelConfig,
    shapes: Mapping[str, Shape],  # of our tensors of one network
    network: Network,
) -> list[Row]:
    """Return the row of each of our tensors, in their order.

    Raises: UsageError if one has no name in their files.
    """
    pieces = parts(config)
    return [_row(config, pieces, network, name, shape) for name, shape in shapes.items()]


def filters(config: ModelConfig, network: Network) -> list[tuple[str, str]]:
    """Return part and rest of the name of each filter that their files hold beside the weights."""
    if network == "G":
        sides = _sides(config.generator)
        return [
            ("trunk", f"b{side}.{place}{FILTER}")
            for side in sides
            for place in ("", *(() if side == 4 else ("conv0.",)), "conv1.")
        ]
    d = config.discriminator
    is_skip = d.architecture == "skip"
    found = []
    for index, side in enumerate(_halvings(d.image_size_px)):
        layers = ["", "conv0.", "conv1.", *([] if is_skip else ["skip."])]
        layers += ["fromrgb."] if is_skip or index == 0 else []
        found += [f"b{side}.{layer}{FILTER}" for layer in layers]
    found += [f"b4.conv.{FILTER}", *([f"b4.fromrgb.{FILTER}"] if is_skip else [])]
    return [(head, name) for head in ("rgb", "mask") for name in found]


def refuse_others(config: ModelConfig) -> None:
    """Make sure that the published networks can be what ``config`` describes.

    Raises: UsageError naming the first key with which the same weights would be another function.
    """
    for key, value, is_it in _WANTED:
        if not is_it(config):
            raise UsageError(
                f"{key} is not {value}, which all published networks have: the same weights would make other shapes",
                f"{key}={value}, or a run that was trained like that",
            )


_WANTED: tuple[tuple[str, str, Callable[[ModelConfig], bool]], ...] = (
    ("generator.kind", "unified", lambda m: m.generator.kind == "unified"),
    ("generator.classes", "[]", lambda m: not m.generator.classes),
    ("generator.mirror_x", "false", lambda m: not m.generator.mirror_x),
    ("generator.mapping.lr_multiplier", "0.01", lambda m: m.generator.mapping.lr_multiplier == 0.01),
    ("generator.trunk.noise", "true", lambda m: m.generator.trunk.noise),
    ("generator.trunk.resampling", "fir", lambda m: m.generator.trunk.resampling == "fir"),
    ("generator.fields.demodulate_geometry", "true", lambda m: m.generator.fields.demodulate_geometry),
    ("generator.fields.sdf_gain", "1", lambda m: m.generator.fields.sdf_gain == 1),
    ("generator.fields.sphere_gain", "0", lambda m: m.generator.fields.sphere_gain == 0),
    ("generator.fields.fixed_background", "false", lambda m: not m.generator.fields.fixed_background),
    ("generator.fields.palette", "false", lambda m: not m.generator.fields.palette),
    ("generator.grid.kind", "dmtet", lambda m: m.generator.grid.kind == "dmtet"),
    ("discriminator.mask_size_px", "0", lambda m: m.discriminator.mask_size_px == 0),
    ("discriminator.resampling", "fir", lambda m: m.discriminator.resampling == "fir"),
    ("discriminator.camera_conditioning", "true", lambda m: m.discriminator.camera_conditioning),
    (
        "discriminator.camera_mapping.lr_multiplier",
        "0.01",
        lambda m: m.discriminator.camera_mapping.lr_multiplier == 0.01,
    ),
)


def _field(theirs: str, ours: str, last: int, known: Known) -> Part:
    """Return one of the three small networks, which their numbers of outputs tell apart: 1, 3 and more."""
    told_by = (f"{ours}.layers.{last}.weight", f"{ours}.layers.{last}.bias")
    return Part(network="G", prefix=f"synthesis.generator.{theirs}.", known=known, told_by=told_by)


def _row(config: ModelConfig, pieces: Mapping[str, Part], network: Network, name: str, shape: Shape) -> Row:
    for rule in _RULES:
        match = re.fullmatch(rule.ours, name) if rule.network == network else None
        if match:
            groups = {key: value or "" for key, value in match.groupdict().items()}
            words = groups | _words(config, network, groups)
            part = rule.part.format(**words)
            known = max(rule.known, pieces[part].known, key=_CERTAINTY.index)
            is_kernel = rule.is_pixel and groups["leaf"] == "weight"
            theirs = (*shape, 1, 1) if is_kernel else shape
            return Row(ours=name, part=part, rest=rule.rest.format(**words), known=known, shape=theirs)
    raise UsageError(
        f"{name} has no name in the published files",
        "they hold networks of the kind of jobs/configs/car.yaml",
    )


def _words(config: ModelConfig, network: Network, groups: Mapping[str, str]) -> dict[str, str]:
    """Return what their names are made of beside the groups: sizes in place of numbers, their words for layers."""
    words = {}
    if "block" in groups:
        sides = (
            _sides(config.generator)
            if network == "G"
            else [*_halvings(config.discriminator.image_size_px), 4]
        )
        words["size"] = str(sides[int(groups["block"])])
    if "conv" in groups:  # the first resolution has one convolution, which is called the second
        words["place"] = "1" if groups["block"] == "0" else groups["conv"]
    if "layer" in groups:
        words["their_layer"] = _THEIR_LAYERS[groups["layer"]]
    if "extra" in groups:
        words["extra"] = _THEIR_EXTRAS.get(groups["extra"], groups["extra"])
    return words


def _sides(config: GeneratorConfig) -> list[int]:
    return [2**k for k in range(2, config.trunk.resolution_px.bit_length())]


def _halvings(size_px: int) -> list[int]:
    return [2**k for k in range(size_px.bit_length() - 1, 2, -1)]
