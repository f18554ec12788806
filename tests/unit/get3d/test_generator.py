"""The generator: styles, geometry, colours, and whom each loss teaches."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from get3d_cluster.get3d.config import (
    DiscriminatorConfig,
    FieldsConfig,
    GeneratorConfig,
    GridConfig,
    MappingConfig,
    RenderConfig,
    TrunkConfig,
)
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator, Shapes
from get3d_cluster.get3d.losses import discriminator_loss, generator_loss, r1_penalty
from get3d_cluster.get3d.mapping import Latents

W = 16
SMALL = GeneratorConfig(
    latent_channels=W,
    mapping=MappingConfig(num_layers=2, lr_multiplier=0.1),
    trunk=TrunkConfig(
        resolution_px=16, plane_channels=4, channels=(8, 8, 8), noise=False, resampling="bilinear"
    ),
    fields=FieldsConfig(
        hidden_channels=8,
        texture_channels=6,
        demodulate_geometry=False,
        sdf_gain=0.1,
        sphere_gain=4.0,
        background=-1.0,
    ),
    grid=GridConfig(cells=6, max_deformation=0.25, close_boundary=True),
    render=RenderConfig(image_size_px=16, antialias_rgb=True),
)
UPSTREAM = replace(
    SMALL,
    trunk=TrunkConfig(resolution_px=16, plane_channels=4, channels=(8, 8, 8)),
    fields=FieldsConfig(hidden_channels=8, texture_channels=6),
    grid=GridConfig(cells=6),
    render=RenderConfig(image_size_px=16),
)
OURS = replace(SMALL, mirror_x=True, fields=replace(SMALL.fields, palette=True))
CONFIGS = {"small": SMALL, "upstream": UPSTREAM, "ours": OURS}
CAMERAS = torch.tensor([[0.0, 1.3], [2.0, 1.2], [4.0, 1.5], [5.0, 1.4]])


def latents_of(generator: Generator, num: int = 4, seed: int = 1) -> Latents:
    z = torch.randn(2, num, W, generator=torch.Generator().manual_seed(seed))
    return generator.map(z[0], z[1])


@pytest.fixture(params=list(CONFIGS))
def generator(request: pytest.FixtureRequest) -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIGS[request.param])


@pytest.fixture
def small() -> Generator:
    torch.manual_seed(0)
    return Generator(SMALL)


def geometry_only(generator: Generator) -> list[Tensor]:
    return [*generator.sdf_field.parameters(), *generator.deformation_field.parameters()]


# Styles


def test_styles_fill_every_slot_without_side_effect(generator: Generator) -> None:
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    latents = latents_of(generator)
    assert latents.geo.shape == (4, generator.config.num_ws_geo, W)
    assert latents.tex.shape == (4, generator.config.num_ws_tex, W)
    assert torch.equal(latents.geo[:, 0], latents.geo[:, -1])
    generator.render(latents, CAMERAS)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_running_means_move_a_little_and_truncation_goes_to_them(small: Generator) -> None:
    latents = latents_of(small)
    mean = small.w_mean(latents)
    assert torch.allclose(mean[:W], latents.geo[:, 3].mean(dim=0))
    assert torch.allclose(mean[W:], latents.tex[:, 3].mean(dim=0))
    small.update_w_avg(mean)
    assert torch.allclose(small.w_avg_geo, 0.002 * mean[:W], atol=1e-6)
    small.update_w_avg(mean, beta=0.0)
    assert torch.equal(small.w_avg_tex, mean[W:])
    none = small.truncate(latents, 0.0)
    assert torch.equal(none.geo, mean[:W].expand_as(none.geo))
    assert torch.allclose(small.truncate(latents, 1.0).tex, latents.tex, atol=1e-6)


def test_the_mean_of_mixed_styles_is_that_of_the_first(small: Generator) -> None:
    a, b = latents_of(small, seed=1), latents_of(small, seed=2)
    assert torch.equal(small.w_mean(small.mix(a, b, 1, 1)), small.w_mean(a))


def moved(w: Tensor, slot: int) -> Tensor:
    w = w.clone()
    w[:, slot] += 1
    return w


def test_the_last_slots_modulate_the_fields_and_not_the_planes(small: Generator) -> None:
    base = latents_of(small)
    old = small.shapes(base)
    for slot in (-2, -1):
        new = small.shapes(Latents(geo=moved(base.geo, slot), tex=moved(base.tex, slot)))
        assert torch.equal(new.planes.geo, old.planes.geo)
        assert torch.equal(new.planes.tex, old.planes.tex)
        assert not torch.allclose(new.sdf, old.sdf)
        assert not torch.allclose(new.deformation, old.deformation)


def test_the_colour_layer_obeys_the_very_last_texture_slot(small: Generator) -> None:
    base, point = latents_of(small), (torch.tensor([0]), torch.tensor([[0.1, 0.2, 0.1]]))
    with torch.no_grad():
        for layer in small.texture_field.layers:
            layer.affine.weight.zero_()  # now the style reaches the colour layer only
    old = small.colours(small.planes(base), base, *point)
    for slot, changes in ((-2, False), (-1, True)):
        new = Latents(geo=base.geo, tex=moved(base.tex, slot))
        assert torch.allclose(small.colours(small.planes(new), new, *point), old) != changes


# Geometry


def test_the_first_shape_is_the_sphere_it_is_told_to_start_from() -> None:
    torch.manual_seed(0)
    fields = replace(SMALL.fields, sdf_gain=0.0)
    generator = Generator(replace(SMALL, fields=fields, grid=GridConfig(cells=12, max_deformation=0.0)))
    shapes = generator.shapes(latents_of(generator, 1))
    radius = shapes.meshes.verts.detach().norm(dim=1)
    assert float(radius.mean()) == pytest.approx(0.3, abs=0.01)
    assert (radius - 0.3).abs().max() < 0.01
    assert not shapes.penalty.any()


def test_deformation_stays_within_its_limit(generator: Generator) -> None:
    with torch.no_grad():
        generator.deformation_field.layers[-1].bias.fill_(100.0)
        shapes = generator.shapes(latents_of(generator))
    limit = generator.config.grid.max_deformation / 6
    moved = shapes.deformation
    if generator.config.mirror_x:
        assert torch.equal(moved[:, :, 0].sign(), generator.grid_vertices[:, 0].sign().expand(4, -1))
        moved = moved[:, generator.grid_vertices[:, 0] > 0]
    assert torch.allclose(moved, torch.full(moved.shape, limit))


def test_meshes_are_closed_even_where_training_leaves_them_open(generator: Generator) -> None:
    """Every edge of every mesh has two faces that run along it in opposite directions."""
    with torch.no_grad():
        meshes = generator.meshes(latents_of(generator))
    assert len(meshes) == 4
    for verts, faces in meshes:
        assert 0 <= int(faces.min()) <= int(faces.max()) < len(verts)
        edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).long()
        there, back = (a * len(verts) + b for a, b in (edges.t(), edges.flip(1).t()))
        assert torch.equal(there.sort().values, back.sort().values)


def test_a_shape_without_surface_is_repaired_and_penalised(small: Generator) -> None:
    with torch.no_grad():
        small.sdf_field.layers[-1].bias.fill_(-1000.0)
    shapes = small.shapes(latents_of(small))
    assert (shapes.meshes.face_ranges[:, 1] > 0).all()
    assert (shapes.penalty > 50).all()
    shapes.penalty.mean().backward()
    assert small.sdf_field.layers[-1].bias.grad.item() < 0  # a step against it raises the distance


def test_the_scale_of_the_grid_scales_the_box_and_the_texture_look_up() -> None:
    def colours(scale: float) -> Tensor:
        torch.manual_seed(0)
        generator = Generator(replace(SMALL, grid=replace(SMALL.grid, scale=scale)))
        assert generator.grid.vertices.abs().max() == scale / 2
        latents = latents_of(generator)
        index = torch.tensor([0, 0, 2])
        points = scale * torch.tensor([[0.1, 0.2, 0.3], [-0.4, 0.0, 0.2], [0.3, 0.3, -0.1]])
        return generator.colours(generator.planes(latents), latents, index, points)

    assert torch.allclose(colours(1.0), colours(0.5), atol=1e-5)


def test_points_outside_the_box_have_the_colour_of_its_border(small: Generator) -> None:
    latents, index = latents_of(small), torch.zeros(3, dtype=torch.int64)
    beyond = torch.tensor([[0.7, 0.2, 0.1], [0.1, -2.0, 0.3], [0.2, 0.1, 9.0]])
    found = [
        small.colours(small.planes(latents), latents, index, points)
        for points in (beyond, beyond.clamp(-0.5, 0.5))
    ]
    assert torch.equal(*found)
    assert not torch.allclose(found[0], small.background.expand(3, 3))


def test_colours_stay_within_256(small: Generator) -> None:
    latents = latents_of(small)
    with torch.no_grad():
        small.colour.weight.mul_(1e6)
        image = small.render(latents, CAMERAS).image
    assert (image[:, :3].amin(), image[:, :3].amax()) == (-256, 256)


@pytest.fixture
def mirrored() -> Generator:
    """Return a generator whose shapes are far from the sphere they start from, which is symmetric anyway."""
    torch.manual_seed(0)
    return Generator(replace(OURS, fields=replace(OURS.fields, sdf_gain=0.5, sphere_gain=1.0)))


MIRROR = torch.tensor([-1.0, 1.0, 1.0])


def farthest_from_its_image(shapes: Shapes) -> float:
    """Return how far a vertex of the first mesh is from the nearest one of the mirror image."""
    verts = shapes.meshes.mesh(0)[0].double()
    return float(torch.cdist(verts * MIRROR, verts).amin(dim=1).max())


def test_a_mirrored_shape_is_its_own_mirror_image(mirrored: Generator) -> None:
    with torch.no_grad():
        shapes = mirrored.shapes(latents_of(mirrored))
        other = replace(mirrored.config, mirror_x=False)
        plain = Generator(other)
        plain.load_state_dict(mirrored.state_dict())
        lopsided = plain.shapes(latents_of(mirrored))
    assert len(shapes.meshes.mesh(0)[0]) > 20
    assert farthest_from_its_image(shapes) < 1e-5
    assert farthest_from_its_image(lopsided) > 1e-2


def test_a_mirrored_deformation_keeps_the_middle_in_the_middle(mirrored: Generator) -> None:
    with torch.no_grad():
        deformation = mirrored.shapes(latents_of(mirrored)).deformation
    middle = mirrored.grid_vertices[:, 0] == 0
    assert not deformation[:, middle, 0].any()
    assert deformation[:, ~middle, 0].all()
    assert deformation[:, middle, 1:].all()


def test_both_sides_of_a_mirrored_shape_have_the_same_colours(mirrored: Generator) -> None:
    latents, whose = latents_of(mirrored), torch.zeros(50, dtype=torch.int64)
    points = torch.rand(50, 3) - 0.5
    with torch.no_grad():
        planes = mirrored.planes(latents)
        right, left = (mirrored.colours(planes, latents, whose, p) for p in (points, points * MIRROR))
        turned = mirrored.colours(planes, latents, whose, points * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.allclose(left, right, atol=1e-5)
    assert not torch.allclose(turned, right, atol=1e-2)


# Images


def test_the_background_has_the_bias_of_the_colour_layer(generator: Generator) -> None:
    with torch.no_grad():
        generator.colour.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    image = generator.render(latents_of(generator), CAMERAS, 24).image
    assert image.shape == (4, 4, 24, 24)
    empty = image[:, 3] == 0
    assert empty.any(dim=(1, 2)).all()
    rgb = image[:, :3].permute(0, 2, 3, 1)[empty]
    assert torch.equal(rgb, torch.tensor([0.1, -0.2, 0.3]).expand_as(rgb))
    assert (image[:, 3].amin(), image[:, 3].amax()) == (0, 1)


def test_an_untouched_pixel_has_the_colour_of_its_point(generator: Generator) -> None:
    """Away from blends the image holds what `colours` says of the surface there."""
    latents = latents_of(generator)
    with torch.no_grad():
        shapes = generator.shapes(latents)
        image = generator.image(shapes, latents, CAMERAS)
        surface = generator._surface(shapes, CAMERAS, 16)
        colours = generator.colours(shapes.planes, latents, surface.frag.batch, surface.position)
    blended = torch.zeros(4 * 16 * 16, dtype=torch.bool)
    blended[surface.blends.target] = generator.config.render.antialias_rgb
    plain = ~blended[surface.frag.idx]
    assert plain.sum() > 20
    rgb = image[:, :3].permute(0, 2, 3, 1).reshape(-1, 3)[surface.frag.idx]
    assert torch.allclose(rgb[plain], colours[plain], atol=1e-6)


def test_colours_teach_everything_but_the_shape(generator: Generator) -> None:
    rendered = generator.render(latents_of(generator), CAMERAS)
    wanted = [*geometry_only(generator), *generator.parameters()]
    gradients = torch.autograd.grad(
        rendered.image[:, :3].square().sum(),
        [rendered.shapes.sdf, rendered.shapes.meshes.verts, *wanted],
        allow_unused=True,
        materialize_grads=True,
    )
    sdf, verts, *rest = gradients
    assert not sdf.any()
    assert not verts.any()
    assert not any(g.any() for g in rest[: len(geometry_only(generator))])
    named = dict(
        zip([n for n, _ in generator.named_parameters()], rest[len(geometry_only(generator)) :], strict=True)
    )
    assert all(named[name].any() for name in named if name.startswith(("texture_field", "colour", "mapping")))
    assert named["trunk.constant"].any()


def test_the_mask_teaches_the_shape_and_no_colour(generator: Generator) -> None:
    rendered = generator.render(latents_of(generator), CAMERAS)
    weight = torch.randn(4, 16, 16)
    (rendered.image[:, 3] * weight).sum().backward()
    taught = {n for n, p in generator.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"sdf_field.layers.1.weight", "deformation_field.layers.1.weight", "trunk.constant"} <= taught
    assert not any(name.startswith(("texture_field", "colour", "mapping_tex")) for name in taught)
    assert not any("to_tex" in name for name in taught)


def test_views_of_the_same_shapes_equal_single_renders(generator: Generator) -> None:
    latents = latents_of(generator, 2)
    cameras = CAMERAS.view(2, 2, 2)
    with torch.no_grad():
        views = generator.render_views(latents, cameras).image
        assert views.shape == (2, 2, 4, 16, 16)
        for k in range(2):
            assert torch.equal(views[:, k], generator.render(latents, cameras[:, k]).image)


def test_a_sample_looks_the_same_alone_and_in_a_batch(small: Generator) -> None:
    latents = latents_of(small)
    alone = Latents(geo=latents.geo[2:3], tex=latents.tex[2:3])
    with torch.no_grad():
        one, four = small.render(alone, CAMERAS[2:3]).image, small.render(latents, CAMERAS).image
    assert torch.allclose(one[0], four[2], atol=1e-4)


def test_points_may_be_missing_for_some_or_all_samples(small: Generator) -> None:
    latents = latents_of(small)
    planes = small.planes(latents)
    points = torch.rand(3, 3) - 0.5
    some = small.colours(planes, latents, torch.tensor([1, 1, 3]), points)
    again = small.colours(planes, latents, torch.tensor([3]), points[2:])
    assert torch.allclose(some[2], again[0], atol=1e-6)
    none = small.colours(planes, latents, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
    assert none.shape == (0, 3)


def test_points_out_of_order_are_refused(small: Generator) -> None:
    latents = latents_of(small)
    with pytest.raises(ValueError, match="never decrease"):
        small.colours(small.planes(latents), latents, torch.tensor([1, 0]), torch.zeros(2, 3))


def test_the_walk_finds_more_of_the_outline_than_the_standard_rule() -> None:
    def pull(mode: str) -> float:
        torch.manual_seed(0)
        render = RenderConfig(image_size_px=16, antialias=mode)
        generator = Generator(replace(SMALL, grid=replace(SMALL.grid, cells=12), render=render))
        rendered = generator.render(latents_of(generator), CAMERAS)
        (gradient,) = torch.autograd.grad(rendered.image[:, 3].sum(), rendered.shapes.meshes.verts)
        return float(gradient.norm())

    assert pull("walk") > 2 * pull("standard") > 0


def test_descending_the_error_of_the_mask_grows_the_shape(small: Generator) -> None:
    """The target is the outline of a sphere of radius 0.4; the shape starts as one of 0.3."""
    centre = torch.arange(16) - 7.5
    radius_px = 8 * 0.4 / (1.2**2 - 0.4**2) ** 0.5 / (16 / 35)
    target = (centre[:, None].square() + centre.square() < radius_px**2).float()
    adam = torch.optim.Adam(small.parameters(), lr=5e-3, betas=(0.0, 0.99))
    errors = []
    for _ in range(25):
        mask = small.render(latents_of(small), CAMERAS).image[:, 3]
        error = (mask - target).square().mean()
        adam.zero_grad()
        error.backward()
        adam.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]


def test_a_render_draws_no_random_number_and_repeats_bit_for_bit(generator: Generator) -> None:
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        generator.zero_grad()
        image = generator.render(latents_of(generator), CAMERAS).image
        image.square().sum().backward()
        gradients = [p.grad.clone() for p in generator.parameters() if p.grad is not None]
        results.append([image.detach(), *gradients])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_copy_and_a_reloaded_generator_render_the_same(generator: Generator) -> None:
    latents = latents_of(generator)
    expected = generator.render(latents, CAMERAS).image
    torch.manual_seed(9)
    other = Generator(generator.config)
    other.load_state_dict(generator.state_dict())
    for twin in (copy.deepcopy(generator), other):
        assert torch.equal(twin.render(latents, CAMERAS).image, expected)


def test_a_whole_step_gives_every_weight_a_finite_gradient(generator: Generator) -> None:
    discriminator = Discriminator(
        DiscriminatorConfig(
            image_size_px=16,
            mask_size_px=8,
            architecture="resnet",
            resampling="average",
            channels=(8, 8, 8),
            camera_channels=8,
            camera_mapping=MappingConfig(num_layers=2, lr_multiplier=0.1),
        )
    )
    rendered = generator.render(latents_of(generator), CAMERAS)
    loss = generator_loss(discriminator(rendered.image, CAMERAS)).total
    (loss + 0.01 * rendered.shapes.sdf_entropy + rendered.shapes.penalty.mean()).backward()
    real = torch.rand(4, 4, 16, 16).requires_grad_()
    logits = discriminator(real, CAMERAS)
    discriminator.zero_grad()
    loss = discriminator_loss(discriminator(rendered.image.detach(), CAMERAS), logits).total
    (loss + r1_penalty(logits, real, 1.0, 1.0).total).backward()
    for module in (generator, discriminator):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("name", ["small", "ours"])
def test_a_fixed_background_keeps_its_colour_and_the_rest_is_as_before(name: str) -> None:
    torch.manual_seed(0)
    plain = Generator(CONFIGS[name])
    fields = replace(plain.config.fields, fixed_background=True, background=0.25)
    fixed = Generator(replace(plain.config, fields=fields))
    fixed.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for each in (plain, fixed):
            each.colour.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    latents = latents_of(plain)
    learned, image = (each.render(latents, CAMERAS).image for each in (plain, fixed))
    empty, full = learned[:, 3] == 0, learned[:, 3] == 1
    rgb, expected = (x[:, :3].permute(0, 2, 3, 1) for x in (image, learned))
    assert torch.equal(rgb[empty], torch.full_like(rgb[empty], 0.25))
    assert torch.allclose(rgb[full], expected[full], atol=1e-5)
    (gradient,) = torch.autograd.grad(rgb[empty].sum(), fixed.colour.bias, allow_unused=True)
    assert gradient is None or not gradient.any()
