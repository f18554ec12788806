"""Sizes: the published parameter counts, and what a config may say."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.config import (
    DiscriminatorConfig,
    FieldsConfig,
    GeneratorConfig,
    GridConfig,
    MappingConfig,
    ModelConfig,
    RenderConfig,
    TrunkConfig,
)
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.synthesis import Trunk


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_generator_has_the_published_number_of_parameters() -> None:
    small_grid = replace(GeneratorConfig(), grid=GridConfig(cells=2))  # the grid has no parameters
    with torch.device("meta"):
        generator = Generator(small_grid)
    assert count(generator.trunk) == 30_001_101
    assert count(generator.sdf_field) == 33_921
    assert count(generator.deformation_field) == 33_987
    assert count(generator.texture_field) == 34_416
    assert count(generator.colour) == 8_259
    assert count(generator.mapping_geo) == count(generator.mapping_tex) == 2_101_248
    assert count(generator) == 34_314_180


@pytest.mark.parametrize(("architecture", "number"), [("skip", 60_339_840), ("resnet", 62_767_104)])
def test_the_discriminator_has_the_published_number_of_parameters(architecture: str, number: int) -> None:
    with torch.device("meta"):
        discriminator = Discriminator(DiscriminatorConfig(architecture=architecture))
    assert count(discriminator) == number  # 60.34 M and 62.77 M
    assert count(discriminator.rgb.last.camera) == 2_108_928


def test_the_small_variant_has_the_measured_number_of_parameters() -> None:
    mapping = MappingConfig(num_layers=2, lr_multiplier=0.1)
    trunk = TrunkConfig(resolution_px=32, plane_channels=16, channels=(64, 64, 64, 32), noise=False)
    with torch.device("meta"):
        generator = Generator(
            GeneratorConfig(latent_channels=64, mapping=mapping, trunk=trunk, grid=GridConfig(cells=2))
        )
        discriminator = Discriminator(
            DiscriminatorConfig(
                image_size_px=64,
                mask_size_px=32,
                architecture="resnet",
                channels=(64, 64, 64, 32, 16),
                camera_channels=64,
                camera_mapping=mapping,
            )
        )
    assert count(generator) == 320_807  # 321 k
    assert count(discriminator) == 612_080  # 612 k


def test_slots_follow_from_the_resolution_and_the_depth_of_the_fields() -> None:
    assert (GeneratorConfig().num_ws_geo, GeneratorConfig().num_ws_tex) == (22, 9)
    deeper = GeneratorConfig(trunk=TrunkConfig(resolution_px=32), fields=FieldsConfig(num_hidden=3))
    assert (deeper.num_ws_geo, deeper.num_ws_tex) == (2 + 3 * 3 + 4, 4 + 4)
    with torch.device("meta"):
        trunk = Trunk(TrunkConfig(), 8)
    assert [slot for block in trunk.slots_geo for slot in range(block.start, block.stop)] == list(range(20))


def test_noise_averages_and_grid_are_buffers_and_the_grid_is_not_saved() -> None:
    trunk = TrunkConfig(resolution_px=8, plane_channels=4, channels=(8, 8))
    generator = Generator(GeneratorConfig(latent_channels=8, trunk=trunk, grid=GridConfig(cells=2)))
    saved = set(generator.state_dict()) - {name for name, _ in generator.named_parameters()}
    noises = {f"trunk.blocks.{i}.convs.{j}.noise" for i, j in ((0, 0), (1, 0), (1, 1))}
    assert saved == noises | {"w_avg_geo", "w_avg_tex"}
    assert {"grid_vertices", "lattice"} <= {name for name, _ in generator.named_buffers()}


@pytest.mark.parametrize(("tet_res", "cells"), [(90, 36), (64, 26), (70, 28), (80, 32), (100, 40)])
def test_upstreams_names_of_resolutions_stand_for_an_even_number_of_cells(tet_res: int, cells: int) -> None:
    assert GridConfig(cells=4, tet_res=tet_res).num_cells == cells


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GridConfig(cells=13), "cells=13"),
        (lambda: GridConfig(tet_res=2), "tet_res=2"),
        (lambda: TrunkConfig(resolution_px=48), "resolution_px=48"),
        (lambda: TrunkConfig(resolution_px=32, channels=(8, 8)), "channels has 2 values"),
        (lambda: DiscriminatorConfig(image_size_px=4), "image_size_px=4"),
        (lambda: DiscriminatorConfig(image_size_px=64, mask_size_px=128), "mask_size_px=128"),
        (
            lambda: ModelConfig(generator=GeneratorConfig(render=RenderConfig(image_size_px=64))),
            "image_size_px=64",
        ),
    ],
)
def test_an_impossible_size_is_named_with_a_way_out(make: object, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        make()  # type: ignore[operator]
    assert caught.value.way_out


def test_the_config_survives_yaml() -> None:
    written = OmegaConf.to_yaml(OmegaConf.structured(ModelConfig))
    assert OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.create(written))
    ) == (ModelConfig())
