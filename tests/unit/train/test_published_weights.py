"""Files of the published networks: read as they were meant, refused where they cannot be, written back bit for bit."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from get3d_cluster import config as configuration
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.config import ModelConfig
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.train import foreign
from get3d_cluster.train.foreign import Names, Reading
from jobs import _weights, train
from tests import published_file as theirs
from tests.published_file import TINY, TRUNK, Sizes, Tensors
from tests.train_setup import CONFIGS

Published = dict[str, Tensors]
FEW = 1e-4


def tiny_model(**changes: Any) -> ModelConfig:
    """Return the configuration of networks of the sizes of ``TINY``."""
    settings = {
        "data.path": "none",
        "generator.latent_channels": TINY.style,
        "generator.mapping.num_layers": TINY.depth,
        "generator.trunk.resolution_px": TINY.planes_px,
        "generator.trunk.plane_channels": TINY.plane_channels,
        "generator.trunk.channel_base": TINY.base,
        "generator.trunk.channel_max": TINY.most,
        "generator.fields.hidden_channels": TINY.hidden,
        "generator.fields.texture_channels": TINY.texture,
        "generator.grid.cells": 4,
        "generator.render.image_size_px": TINY.image_px,
        "discriminator.image_size_px": TINY.image_px,
        "discriminator.channel_base": TINY.base,
        "discriminator.channel_max": TINY.most,
        "discriminator.camera_channels": TINY.camera,
        "discriminator.camera_mapping.num_layers": TINY.depth,
        **changes,
    }
    config = configuration.load(train.Config, None, [f"{key}={value}" for key, value in settings.items()])
    return ModelConfig(generator=config.generator, discriminator=config.discriminator)


MODEL = tiny_model()


@pytest.fixture(scope="module")
def file() -> Published:
    return theirs.random_file(TINY)


def read(path: Path, file: Published, names: Names | None = None, model: ModelConfig = MODEL) -> Reading:
    torch.save(file, path)
    return foreign.read(path, model, names or Names())


def changed(file: Published, **networks: Callable[[Tensors], None]) -> Published:
    """Return a copy of a file in which some networks were changed."""
    taken = {key: dict(tensors) for key, tensors in file.items()}
    for key, change in networks.items():
        change(taken[key])
    return taken


def refusal(reading: Reading) -> UsageError:
    with pytest.raises(UsageError) as raised:
        reading.refuse_troubles()
    return raised.value


# Read as they were meant


def test_imported_networks_compute_what_the_description_says(tmp_path: Path, file: Published) -> None:
    state = read(tmp_path / "a.pt", file).state
    generator, discriminator = Generator(MODEL.generator).eval(), Discriminator(MODEL.discriminator)
    p, d = file["G_ema"], file["D"]
    with torch.no_grad():
        generator.load_state_dict(state["generator_ema"])
        discriminator.load_state_dict(state["discriminator"])
        z_geo, z_tex = torch.randn(2, 2, TINY.style)
        latents = generator.map(z_geo, z_tex)
        w_geo, w_tex = (
            theirs.mapped(p, "mapping_geo", z_geo, TINY.depth), theirs.mapped(p, "mapping", z_tex, TINY.depth),
        )  # fmt: skip
        torch.testing.assert_close(latents.geo[:, 0], w_geo, rtol=FEW, atol=FEW)
        torch.testing.assert_close(latents.tex[:, 0], w_tex, rtol=FEW, atol=FEW)
        own = Latents(geo=w_geo[:, None].expand_as(latents.geo), tex=w_tex[:, None].expand_as(latents.tex))
        mine, wanted = generator.planes(own), theirs.planes(p, TINY, w_geo, w_tex)
        for plane, image in zip((mine.geo, mine.tex), wanted, strict=True):
            flat = plane.permute(0, 3, 4, 1, 2).flatten(1, 2)
            torch.testing.assert_close(flat, image, rtol=FEW, atol=FEW * float(image.abs().max()))
        places = generator.grid_vertices * 2
        sdf, deformation, _ = generator._geometry(mine, own)
        geometry = theirs.looked_up(wanted[0][0], places)
        torch.testing.assert_close(
            sdf[0], theirs.field(p, "sdf", geometry, w_geo[:1])[:, 0], rtol=FEW, atol=1e-3
        )
        moved = torch.tanh(theirs.field(p, "def", geometry, w_geo[:1])) * 0.4 / 4
        torch.testing.assert_close(deformation[0], moved, rtol=FEW, atol=1e-3)
        points = torch.rand(20, 3) - 0.5
        texture = theirs.field(p, "tex", theirs.looked_up(wanted[1][0], points * 2), w_tex[:1])
        colours = generator.colours(mine, own, torch.zeros(20, dtype=torch.int64), points)
        torch.testing.assert_close(colours, theirs.colours(p, texture, w_tex[:1]), rtol=FEW, atol=1e-3)
        image, cameras = torch.randn(4, 4, TINY.image_px, TINY.image_px), torch.rand(4, 2)
        logits = discriminator(image, cameras)
        for head, part in (("rgb", image[:, :3]), ("mask", image[:, 3:])):
            wanted_logit = theirs.logit(d, TINY, head, part, cameras)
            torch.testing.assert_close(getattr(logits, head), wanted_logit, rtol=1e-3, atol=1e-3)


def test_every_network_keeps_its_own_weights_and_means(tmp_path: Path, file: Published) -> None:
    state = read(tmp_path / "a.pt", file).state
    for key, part in (("G", "generator"), ("G_ema", "generator_ema")):
        assert torch.equal(state[part]["w_avg_geo"], file[key]["mapping_geo.w_avg"])
        assert torch.equal(state[part]["w_avg_tex"], file[key]["mapping.w_avg"])
        noise = state[part]["trunk.blocks.1.convs.0.noise"]
        assert torch.equal(noise, file[key][f"{TRUNK}.b8.conv0.noise_const"])


@pytest.mark.parametrize("preset", ["car", "chair", "motorbike", "table"])
def test_a_file_of_the_published_sizes_fits_each_preset(tmp_path: Path, preset: str) -> None:
    one = torch.zeros(())

    def none(shape: tuple[int, ...]) -> torch.Tensor:
        return one.expand(shape)  # a number of memory, whatever its shape

    file = theirs.published(Sizes(), none)
    for tensors in file.values():
        tensors |= {name: theirs.FIR.clone() for name in tensors if name.endswith("resample_filter")}
    torch.save(file, tmp_path / "a.pt")
    config = configuration.load(train.Config, CONFIGS / f"{preset}.yaml", _weights.SETTINGS)
    reading = _weights.read(tmp_path / "a.pt", config, None)
    reading.refuse_troubles()
    count = sum(line.kind == "matched" for line in reading.lines)
    assert count == 2 * 197 + 148
    assert len(reading.lines) == sum(map(len, file.values()))


def test_a_safetensors_file_is_read_alike(tmp_path: Path, file: Published) -> None:
    flat = {f"{key}.{name}": tensor for key, tensors in file.items() for name, tensor in tensors.items()}
    save_file(flat, tmp_path / "a.safetensors")
    state = foreign.read(tmp_path / "a.safetensors", MODEL, Names()).state
    other = read(tmp_path / "a.pt", file).state
    for part in other:
        assert all(torch.equal(state[part][name], other[part][name]) for name in other[part])


# Names that are not certain


def renamed(before: str, after: str) -> Callable[[Tensors], None]:
    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(before)]:
            tensors[after + name.removeprefix(before)] = tensors.pop(name)

    return rename


@pytest.mark.parametrize(
    ("network", "before", "after"),
    [
        ("G", "synthesis.generator.mlp_synthesis_sdf.", "synthesis.generator.distance."),
        ("G", "synthesis.to_rgb.", "synthesis.layers.last."),
        ("G", f"{TRUNK}.b4.const", f"{TRUNK}.b4.input.learned"),
        ("D", "rgb.", ""),
        ("D", "mask.", "module.of.the.mask."),
    ],
)
def test_an_assumed_prefix_is_found_by_the_shape_that_only_it_has(
    tmp_path: Path, file: Published, network: str, before: str, after: str
) -> None:
    wanted = read(tmp_path / "a.pt", file).state
    reading = read(tmp_path / "b.pt", changed(file, **{network: renamed(before, after)}))
    reading.refuse_troubles()
    part = {"G": "generator", "D": "discriminator"}[network]
    assert all(torch.equal(reading.state[part][name], tensor) for name, tensor in wanted[part].items())
    assert any(line.how == "by shape" for line in reading.lines)


def test_heads_whose_names_are_swapped_are_told_apart_by_their_channels(
    tmp_path: Path, file: Published
) -> None:
    def swap(tensors: Tensors) -> None:
        for before, after in (("rgb.", "other."), ("mask.", "rgb."), ("other.", "mask.")):
            renamed(before, after)(tensors)

    wanted = read(tmp_path / "a.pt", file).state["discriminator"]
    state = read(tmp_path / "b.pt", changed(file, D=swap)).state["discriminator"]
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


def test_two_places_of_one_shape_are_refused_until_one_is_named(tmp_path: Path, file: Published) -> None:
    def double(tensors: Tensors) -> None:
        renamed("synthesis.to_rgb.", "one.")(tensors)
        tensors |= {f"two.{name[4:]}": tensors[name] + 1 for name in list(tensors) if name.startswith("one.")}

    twice = changed(file, G=double)
    error = refusal(read(tmp_path / "a.pt", twice))
    assert "may be one.* or two.*" in error.what
    assert "parts: colour: PREFIX" in error.way_out
    names = Names(parts={"colour": "two."}, unused=("one.*",))
    reading = read(tmp_path / "a.pt", changed(twice, G_ema=double), names)
    reading.refuse_troubles()
    assert torch.equal(reading.state["generator"]["colour.bias"], file["G"]["synthesis.to_rgb.bias"] + 1)


def test_names_from_a_file_overrule_and_complete_the_table(tmp_path: Path, file: Published) -> None:
    other = changed(file)
    for key in ("G", "G_ema"):
        other[key]["start"] = other[key].pop("mapping.w_avg")
        other[key]["steps"] = torch.zeros(1)
    other = {"gen": other["G"], "G_ema": other["G_ema"], "D": other["D"]}
    (tmp_path / "names.yaml").write_text("networks: {G: gen}\nnames:\n  w_avg_tex: start\nunused: [steps]\n")
    names = foreign.read_names(tmp_path / "names.yaml")
    reading = read(tmp_path / "a.pt", other, names)
    reading.refuse_troubles()
    assert torch.equal(reading.state["generator"]["w_avg_tex"], file["G"]["mapping.w_avg"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("parts: {sdf: a.}", "parts has sdf, which is not ours"),
        ("names: {trunk.constants: a}", "names has trunk.constants, which is not ours"),
        ("name: {}", "keys that say nothing"),
        ("names: [a]", "names is no table"),
        ("unused: a", "unused is no list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_names_that_say_nothing_are_refused(tmp_path: Path, file: Published, text: str, says: str) -> None:
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UsageError, match=says):
        read(tmp_path / "a.pt", file, foreign.read_names(tmp_path / "names.yaml"))


# Refused


def put(name: str, value: Any) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = value

    return change


CONV = f"{TRUNK}.b8.conv1.weight"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            torch.zeros(10, 10, 3, 5),
            r"conv1.weight is \[10, 10, 3, 5\] there, \[10, 10, 3, 3\] by this configuration",
        ),
        (torch.zeros(10, 9, 3, 3), r"is \[10, 9, 3, 3\] there"),
        (torch.zeros(10, 10, 3, 3, dtype=torch.bfloat16), "is bfloat16, not float32"),
        (torch.zeros(10, 10, 3, 3, dtype=torch.float64), "is float64, not float32"),
        (torch.full((10, 10, 3, 3), torch.nan), "not finite"),
        (7, "is a int, not a tensor"),
    ],
)
def test_a_tensor_that_is_not_ours_is_named_with_both_shapes(
    tmp_path: Path, file: Published, value: Any, says: str
) -> None:
    error = refusal(read(tmp_path / "a.pt", changed(file, G=put(CONV, value))))
    assert error.what.startswith(f"{tmp_path / 'a.pt'}: G {TRUNK}.b8.conv1.weight")
    with pytest.raises(UsageError, match=says):
        raise error
    assert "nothing was imported" in error.what
    assert error.way_out


def test_wrong_sizes_are_told_before_all_that_follows_from_them(tmp_path: Path, file: Published) -> None:
    reading = read(tmp_path / "a.pt", file, model=tiny_model(**{"generator.trunk.resolution_px": 32}))
    error = refusal(reading)
    assert "b32" in error.what
    assert "missing" in error.what
    reading = read(tmp_path / "a.pt", file, model=tiny_model(**{"generator.latent_channels": 8}))
    assert "is [6] there, [8] by this configuration" in refusal(reading).what


def test_a_missing_tensor_and_one_that_fits_nothing_are_refused(tmp_path: Path, file: Published) -> None:
    def rename(tensors: Tensors) -> None:
        tensors["mapping.fc0.kernel"] = tensors.pop("mapping.fc0.weight")

    reading = read(tmp_path / "a.pt", changed(file, G_ema=rename))
    error = refusal(reading)
    assert "G_ema mapping_tex.layers.0.weight is missing: there is no mapping.fc0.weight" in error.what
    assert "1 missing, 1 that fit nothing" in error.what
    assert "--list" in error.way_out
    assert [line.theirs for line in reading.lines if line.kind == "that fit nothing"] == [
        "mapping.fc0.kernel"
    ]


def test_no_tensor_of_theirs_is_used_twice(tmp_path: Path, file: Published) -> None:
    names = Names(names={"w_avg_geo": "mapping.w_avg"}, unused=("mapping_geo.w_avg",))
    error = refusal(read(tmp_path / "a.pt", file, names))
    assert "mapping.w_avg is ambiguous: two tensors of ours would come from it" in error.what


def test_another_filter_is_refused_and_a_scaled_one_is_not(tmp_path: Path, file: Published) -> None:
    name = f"{TRUNK}.b8.resample_filter"
    read(tmp_path / "a.pt", changed(file, G=put(name, theirs.FIR * 4))).refuse_troubles()
    error = refusal(read(tmp_path / "a.pt", changed(file, G=put(name, torch.ones(4, 4)))))
    assert "filter other than [1, 3, 3, 1]" in error.what


@pytest.mark.parametrize(
    "content",
    [
        {"G": {"a": torch.zeros(1)}},
        {"state_dict": {}},
        {"G": 1, "G_ema": {}, "D": {}},
        {},
        {"w": torch.zeros(1)},
    ],
)
def test_another_layout_is_named_by_its_keys(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UsageError, match="should hold the networks G, G_ema and D") as raised:
        read(tmp_path / "a.pt", content)
    assert "--names" in raised.value.way_out


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("how", ["cut", "garbage", "empty", "missing"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, file: Published, suffix: str, how: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(_weights._packed(file, path.suffix))
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[: len(data) // 2], "garbage": b"no weights" * 50, "empty": b""}.get(how, b"")
    )
    if how == "missing":
        path.unlink()
    with pytest.raises(UsageError, match=rf"a\.{suffix}"):
        foreign.read(path, MODEL, Names())


def test_tensors_of_a_gpu_are_read_on_a_machine_without_one(tmp_path: Path, file: Published) -> None:
    torch.save(file, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, data)
    reading = foreign.read(tmp_path / "b.pt", MODEL, Names())
    reading.refuse_troubles()
    assert torch.equal(reading.state["generator"]["trunk.constant"], file["G"][f"{TRUNK}.b4.const"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generator.mapping.lr_multiplier", 0.1),
        ("generator.fields.sdf_gain", 0.1),
        ("generator.trunk.resampling", "bilinear"),
        ("generator.kind", "separate"),
        ("discriminator.camera_conditioning", "false"),
    ],
)
def test_networks_that_the_published_ones_cannot_be_are_refused_both_ways(
    tmp_path: Path, file: Published, key: str, value: Any
) -> None:
    model = tiny_model(**{key: value})
    with pytest.raises(UsageError, match=f"{key} is not"):
        read(tmp_path / "a.pt", file, model=model)
    with pytest.raises(UsageError, match=f"{key} is not"):
        foreign.as_published({}, model, Names())


# Out


def test_what_is_written_is_what_the_description_says_and_reads_back(tmp_path: Path, file: Published) -> None:
    state = read(tmp_path / "a.pt", file).state
    written = foreign.as_published(state, MODEL, Names())
    for key, tensors in file.items():
        assert set(written[key]) == set(tensors)
        for name, tensor in tensors.items():
            assert written[key][name].shape == tensor.shape, name
            assert torch.equal(written[key][name], tensor), name


def test_names_are_written_as_given_and_never_twice(tmp_path: Path, file: Published) -> None:
    state = read(tmp_path / "a.pt", file).state
    written = foreign.as_published(state, MODEL, Names(parts={"rgb": ""}, networks={"D": "disc"}))
    assert "b16.conv0.weight" in written["disc"]
    with pytest.raises(UsageError, match="two tensors one name"):
        foreign.as_published(state, MODEL, Names(parts={"rgb": "", "mask": ""}))
    with pytest.raises(UsageError, match="two tensors one name"):
        foreign.as_published(state, MODEL, Names(names={"w_avg_geo": "mapping.w_avg"}))


def test_lines_are_json(tmp_path: Path, file: Published) -> None:
    from dataclasses import asdict

    lines = read(tmp_path / "a.pt", file).lines
    assert json.loads(json.dumps([asdict(line) for line in lines]))[0]["network"] == "G"
