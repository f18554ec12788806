"""The device computes what the CPU computes: equal integers, floats to rounding.

Whole networks are compared in float64 as well, where rounding cannot be taken for a mistake nor hide one.
"""

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from get3d_cluster.core import philox
from get3d_cluster.get3d import raster, tets
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.config import DiscriminatorConfig, MappingConfig
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.fields import _bags, point_features
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.losses import discriminator_loss, generator_loss, r1_penalty
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.get3d.raster.surface import to_clip
from get3d_cluster.train import numerics, phases, random
from get3d_cluster.train.networks import adam
from tests.gpu.setting import (
    Facts,
    Setting,
    Skipped,
    difference,
    middle_size,
    same,
    tiny_test,
    trainer,
    within,
)

CLOSE = 1e-5
CLOSE_FLOAT64 = 1e-9


def check_random_numbers(setting: Setting) -> Facts:
    """Philox words, uniforms, integers and normals: the same bits on device and CPU, and as the scalar reference."""
    samples, seed, step = torch.arange(40 if setting.toy else 4096), 0xFEDCBA9876543210, 2**32 - 1
    there = samples.to(setting.device)
    width = 8 if setting.toy else 512
    for name, draw in (("words", random.words), ("uniforms", random.uniforms), ("normals", random.normals)):
        same(draw(seed, step, 3, there, width), draw(seed, step, 3, samples, width), name)
    whole = random.integers(seed, step, 3, there, width, 1000)
    same(whole, random.integers(seed, step, 3, samples, width, 1000), "integers")
    first = random.words(seed, step, 3, there[:5], 8).tolist()
    assert first == [philox.words(seed, step, 3, sample, 8) for sample in range(5)], "scalar reference"
    cameras = [phases.draw_cameras(seed, 1, philox.Phase.CAMERA, s, (0.0, 30.0)) for s in (there, samples)]
    within(1e-6, {"cameras": difference(*cameras)})
    return {"numbers compared": 4 * len(samples) * width}


def check_visibility(setting: Setting) -> Facts:
    """Triangle ids of random soups, packed and instanced, and of a real mesh: the same integers."""
    facts: Facts = {}
    for size, count in ((17, 60), (64, 400)) if setting.toy else ((17, 60), (256, 5000), (1024, 5000)):
        pos, tri = _soup(count, seed=size)
        ids = [_ids(pos.to(d), tri.to(d), (size, size + 3)) for d in (setting.device, "cpu")]
        same(*ids, f"ids at {size} px")
        facts[f"covered at {size} px"] = round(float((ids[1] > 0).float().mean()), 3)
        ranges = torch.tensor([[0, count // 2], [count // 2, 0], [count // 2, count - count // 2]])
        packed = [
            raster.visibility(pos[0].to(d), tri.to(d), (size, size), ranges=ranges, backend="torch")
            for d in (setting.device, "cpu")
        ]
        same(*packed, f"packed ids at {size} px")
    if setting.has("numba"):
        same(raster.visibility(pos, tri, (size, size + 3), backend="numba"), ids[0], "ids of numba")
    facts["numba compared"] = setting.has("numba")
    return facts


def _ids(pos: Tensor, tri: Tensor, size: tuple[int, int]) -> Tensor:
    return raster.visibility(pos, tri, size, backend="torch")


def _soup(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two views [2, V, 4] of triangles of all sizes, some behind the camera, not finite or of no area."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(2, count, 1, 3, generator=generator) * 2.4 - 1.2
    extent = 10 ** (torch.rand(2, count, 1, 1, generator=generator) * 2.5 - 3)
    corners = centre + extent * torch.randn(2, count, 3, 3, generator=generator)
    w = torch.rand(2, count, 3, 1, generator=generator) * 3 + 0.5
    w[:, ::50, 0] *= -1
    pos = torch.cat([corners * w, w], dim=3).flatten(1, 2)
    pos[:, 100::500] = torch.nan
    tri = torch.arange(3 * count, dtype=torch.int32).view(-1, 3)
    tri[7::90, 1] = tri[7::90, 0]
    return pos, tri


def check_rasterizer_gradients(setting: Setting) -> Facts:
    """Masks, positions and depth of surfaces, and the gradients to their vertices, in both modes."""
    facts: Facts = {}
    size = 24 if setting.toy else 256
    meshes = _meshes(6 if setting.toy else 20)
    azimuth, polar = torch.tensor([0.3, 2.0, 4.1]), torch.tensor([1.3, 1.5, 0.9])
    matrices = clip_matrices(azimuth, polar)
    for mode in ("walk", "standard"):
        results = [_render(meshes, matrices, size, mode, device) for device in (setting.device, "cpu")]
        (surface, gradient), (expected, expected_gradient) = results
        same(surface.frag.tri_id, expected.frag.tri_id, "triangle ids")
        same(surface.hard, expected.hard, "hard mask")
        same(surface.blends.target, expected.blends.target, "blended pixels")
        found = {
            "soft mask": difference(surface.soft, expected.soft),
            "position": difference(surface.position, expected.position),
            "depth": difference(surface.depth, expected.depth),
            "gradient": difference(gradient, expected_gradient),
        }
        within(CLOSE, found)
        worst = float((surface.soft.cpu() - expected.soft).detach().abs().max())
        assert worst <= CLOSE, f"soft mask differs by {worst:.3g} in a pixel"
        facts |= {f"{mode}: {name}": value for name, value in found.items()}
    return facts


def _meshes(cells: int) -> raster.Meshes:
    """Return a sphere, a bumpy thing of several parts, and nothing."""
    grid = tets.bcc_grid(cells)
    radius = grid.vertices.norm(dim=1)
    waves = torch.sin(14 * grid.vertices).sum(dim=1) / 12
    sdf = torch.stack([0.35 - radius, 0.25 - radius + waves, -radius - 1])
    return tets.marching_tets(grid.vertices.expand(3, -1, -1), sdf, grid)


def _render(
    meshes: raster.Meshes, matrices: Tensor, size: int, mode: Any, device: str
) -> tuple[raster.Surface, Tensor]:
    verts = meshes.verts.to(device).requires_grad_()
    there = replace(meshes, verts=verts, faces=meshes.faces.to(device))
    surface = raster.render_meshes(there, matrices.to(device), (size, size), mode=mode, backend="torch")
    weights = torch.randn(surface.soft.shape, generator=torch.Generator().manual_seed(1)).to(device)
    loss = (surface.soft * weights).sum() + (surface.position.square().sum(dim=1) * 0.1).sum()
    (gradient,) = torch.autograd.grad(loss, verts)
    return surface, gradient


def check_marching_tets(setting: Setting) -> Facts:
    """Meshes, the regulariser and the repair of empty shapes, with gradients."""
    facts: Facts = {}
    grid = tets.bcc_grid(4 if setting.toy else 36)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(3, len(grid.vertices), generator=generator)
    noise[2] = noise[2].abs()  # all inside: to be repaired
    moved = torch.randn(3, len(grid.vertices), 3, generator=generator) * (0.1 / grid.cells)
    for dtype, limit in ((torch.float32, CLOSE), (torch.float64, CLOSE_FLOAT64)):
        ours, theirs = (_tets(grid, noise, moved, device, dtype) for device in (setting.device, "cpu"))
        same(ours.pop("faces"), theirs.pop("faces"), "faces")
        same(ours.pop("ranges"), theirs.pop("ranges"), "ranges")
        found = {name: difference(ours[name], theirs[name]) for name in ours}
        within(limit, found)
        facts |= {f"{str(dtype).removeprefix('torch.')}: {name}": value for name, value in found.items()}
    return facts


def _tets(
    grid: tets.TetGrid, noise: Tensor, moved: Tensor, device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    there = replace(grid.to(device), vertices=grid.vertices.to(device, dtype))
    sdf = noise.to(device, dtype).requires_grad_()
    deformation = moved.to(device, dtype).requires_grad_()
    repaired, still, penalty = tets.repair_empty(sdf, deformation, there)
    repaired = tets.close_boundary(repaired, there)
    meshes = tets.marching_tets(there.vertices + still, repaired, there)
    entropy = tets.sdf_entropy(repaired, there.edges)
    loss = (meshes.verts.square().sum(dim=1)).sum() + entropy + penalty.sum()
    by_sdf, by_deformation = torch.autograd.grad(loss, (sdf, deformation))
    return {
        "faces": meshes.faces,
        "ranges": meshes.face_ranges,
        "vertices": meshes.verts,
        "entropy": entropy,
        "penalty": penalty,
        "gradient by sdf": by_sdf,
        "gradient by deformation": by_deformation,
    }


def check_texture_lookup(setting: Setting) -> Facts:
    """Plane features at points and their gradient: the deterministic way, grid_sample, and no points at all."""
    numerics.fix(setting.device)
    generator = torch.Generator().manual_seed(2)
    res, channels, count = (8, 4, 50) if setting.toy else (256, 32, 100_000)
    planes = torch.randn(res, res, 3, channels, generator=generator)
    points = torch.rand(count, 3, generator=generator) * 2.2 - 1.1
    weights = torch.randn(count, channels, generator=generator)
    expected, expected_gradient = _looked_up(point_features, planes, points, weights)
    facts: Facts = {}
    for name, look_up in (("as used", point_features), ("weighted sums", _bags)):
        there = [tensor.to(setting.device) for tensor in (planes, points, weights)]
        features, gradient = _looked_up(look_up, *there)
        facts[name] = difference(features, expected)
        facts[f"{name}: gradient"] = difference(gradient, expected_gradient)
    within(CLOSE, facts)
    empty, gradient = _looked_up(_bags, there[0], there[1][:0], there[2][:0])
    assert empty.shape == (0, channels), "features of no points"
    assert not gradient.any(), "gradient of no points"
    return facts


def _looked_up(look_up: Any, planes: Tensor, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    planes = planes.clone().requires_grad_()
    features = look_up(planes, points)
    (gradient,) = torch.autograd.grad((features * weights).sum(), planes)
    return features, gradient


def check_generator(setting: Setting) -> Facts:
    """The whole generator: styles, planes, distances, image, and the gradient of every parameter."""
    facts: Facts = {}
    for dtype, limit in ((torch.float32, 1e-2), (torch.float64, CLOSE_FLOAT64)):
        torch.manual_seed(3)
        generator = Generator(middle_size(setting)).to(dtype)
        ours, theirs = (_generated(copy.deepcopy(generator), d, dtype) for d in (setting.device, "cpu"))
        found = {name: difference(ours[name], theirs[name]) for name in theirs}
        name = str(dtype).removeprefix("torch.")
        facts |= {f"{name}: {key}": found[key] for key in ("styles", "planes", "sdf", "image", "gradients")}
        within(
            CLOSE if dtype is torch.float32 else limit,
            {key: found[key] for key in ("styles", "planes", "sdf")},
        )
        # In float32 rounding may push a vertex over a step of the subpixel grid, and a pixel to another triangle.
        within(limit, {key: found[key] for key in ("image", "gradients")})
    return facts


def _generated(generator: Generator, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    numerics.fix(device)
    generator = generator.to(device)
    width = generator.config.latent_channels
    samples = torch.arange(3)
    z = [random.normals(1, 0, phase, samples, width).to(device, dtype) for phase in (1, 2)]
    latents: Latents = generator.map(*z)
    cameras = torch.tensor([[0.0, 1.3], [2.0, 1.2], [4.0, 1.5]], dtype=torch.float64).to(device, dtype)
    rendered = generator.render(latents, cameras)
    weights = torch.randn(rendered.image.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    loss = (rendered.image * weights).mean() + rendered.shapes.sdf_entropy + rendered.shapes.penalty.mean()
    loss.backward()
    used = [p.grad.flatten() for _, p in generator.named_parameters() if p.grad is not None]
    return {
        "styles": latents.geo,
        "planes": torch.cat([rendered.shapes.planes.geo, rendered.shapes.planes.tex]),
        "sdf": rendered.shapes.sdf,
        "image": rendered.image,
        "gradients": torch.cat(used),
    }


def check_discriminator(setting: Setting) -> Facts:
    """Both heads: logits, losses, gradients of the first and (R1) of the second order, in all architectures."""
    facts: Facts = {}
    for architecture, resampling, mask_px in (("skip", "fir", 0), ("resnet", "average", 8)):
        config = DiscriminatorConfig(
            image_size_px=16 if setting.toy else 64,
            mask_size_px=mask_px,
            architecture=architecture,  # type: ignore[arg-type]
            resampling=resampling,  # type: ignore[arg-type]
            channel_base=512,
            channel_max=64,
            camera_channels=16,
            camera_mapping=MappingConfig(num_layers=2),
        )
        for dtype, limit in ((torch.float32, CLOSE), (torch.float64, CLOSE_FLOAT64)):
            torch.manual_seed(4)
            model = Discriminator(config).to(dtype)
            ours, theirs = (_judged(copy.deepcopy(model), d, dtype) for d in (setting.device, "cpu"))
            found = {name: difference(ours[name], theirs[name]) for name in theirs}
            within(limit * 10 if dtype is torch.float32 else limit, found)
            facts |= {f"{architecture} {str(dtype)[6:]}: {name}": value for name, value in found.items()}
    return facts


def _judged(model: Discriminator, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    numerics.fix(device)
    model = model.to(device)
    size = 16 if model.rgb.blocks[0].same.weight.shape[0] == 32 else 64
    generator = torch.Generator().manual_seed(6)
    fake, real = (torch.randn(4, 4, size, size, generator=generator).to(device, dtype) for _ in range(2))
    cameras = torch.tensor([[0.1, 1.3], [2.0, 1.2], [4.0, 1.5], [5.5, 1.4]]).to(device, dtype)
    fake, real = fake.requires_grad_(), real.requires_grad_()
    logits, true_logits = model(fake, cameras), model(real, cameras)
    losses = discriminator_loss(logits, true_logits), generator_loss(logits)
    parameters = list(model.parameters())
    first = torch.autograd.grad(losses[0].total, [fake, *parameters], retain_graph=True)
    penalty = r1_penalty(true_logits, real, 10.0, 10.0)
    second = torch.autograd.grad(penalty.total, parameters, allow_unused=True)
    return {
        "logits": torch.cat([logits.rgb, logits.mask]),
        "losses": torch.stack([*losses[0], *losses[1]]),
        "gradient by image": first[0],
        "gradients": torch.cat([gradient.flatten() for gradient in first[1:]]),
        "r1": torch.stack(penalty),
        "gradients of r1": torch.cat([gradient.flatten() for gradient in second if gradient is not None]),
    }


def check_optimizer(setting: Setting) -> Facts:
    """Adam, as it is pinned: ten steps with given gradients."""
    results = []
    for device in (setting.device, "cpu"):
        torch.manual_seed(7)
        model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 7)).to(device)
        optimizer = adam(model, 2e-3, tiny_test().optim, 16)
        generator = torch.Generator().manual_seed(8)
        for _ in range(10):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
            optimizer.step()
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    found = {"parameters": difference(*results)}
    within(1e-6, found)
    return found


def check_first_step(setting: Setting) -> Facts:
    """The first step of a training: its losses and R1, device against CPU."""
    rows = []
    for device in (setting.device, "cpu"):
        work = trainer(replace(setting, device=device), tiny_test())
        troubles: list[str] = []
        fakes, numbers = work._generator_phase(troubles)
        numbers |= work._discriminator_phase(fakes, troubles)
        numbers |= work._r1_phase(troubles)
        assert not troubles, troubles
        rows.append(numbers)
    ours, theirs = rows
    found = {name: abs(ours[name] - theirs[name]) / max(1.0, abs(theirs[name])) for name in theirs}
    within(1e-4, {name: value for name, value in found.items() if name in phases.GENERATOR_NUMBERS})
    within(1e-2, found)  # behind Adam's first step, which magnifies the rounding of gradients near 0
    return found


def check_rasterizer_operations(setting: Setting) -> Facts:
    """Every operation of the rasterizer by itself: forward, gradients, and where it has one the second order."""
    facts: Facts = {}
    size = (17, 24) if setting.toy else (200, 256)
    for dtype, limit in ((torch.float32, CLOSE), (torch.float64, CLOSE_FLOAT64)):
        name = str(dtype).removeprefix("torch.")
        ours, theirs = (_operations(setting, size, dtype, device) for device in (setting.device, "cpu"))
        for key in [key for key, value in theirs.items() if not value.is_floating_point()]:
            same(ours.pop(key), theirs.pop(key), f"{name}: {key}")
        found = {key: difference(ours[key], theirs[key]) for key in theirs}
        within(limit * (10 if dtype is torch.float32 else 1), found)
        facts |= {f"{name}: {key}": value for key, value in found.items()}
    return facts


def _operations(
    setting: Setting, size: tuple[int, int], dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """Return what each operation makes, and its gradients for random cotangents."""
    numerics.fix(device)
    verts, tri = _meshes(6 if setting.toy else 16).mesh(1)
    matrices = clip_matrices(torch.tensor([0.3, 2.0], dtype=dtype), torch.tensor([1.3, 0.8], dtype=dtype))
    start = to_clip(verts[None].to(dtype), matrices[:, None])
    pos, tri = start.to(device).requires_grad_(), tri.to(device)
    generator = torch.Generator().manual_seed(4)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).to(device)

    ids = raster.visibility(pos, tri, size, backend="torch")
    frag = raster.fragments(ids, pos, tri)
    topo = raster.topology(tri, pos.shape[1], backend="torch")
    bary, depth = raster.barycentrics(frag, pos)
    made = {"ids": ids, "pixels": frag.idx, "vertices": frag.vert, "twins": topo.twin}
    made |= {"barycentrics": bary, "depth": depth}
    (first,) = torch.autograd.grad((bary * numbers(*bary.shape)).sum(), pos, create_graph=True)
    (second,) = torch.autograd.grad((first * numbers(*first.shape)).sum(), pos, retain_graph=True)
    made |= {"barycentrics: gradient": first, "barycentrics: second order": second}
    for kind, batch in (("shared", 1), ("own", len(pos))):
        attr = numbers(batch, pos.shape[1], 3).requires_grad_()
        image = raster.to_image(frag, raster.interpolate(frag, bary, attr), 0.5)
        by = torch.autograd.grad((image * numbers(*image.shape)).sum(), [pos, attr], retain_graph=True)
        made |= {f"{kind} attribute": image, f"{kind} attribute: to positions": by[0]}
        made |= {f"{kind} attribute: to attribute": by[1]}
    for mode, pairs in (("walk", "all"), ("walk", "coverage"), ("standard", "all")):
        picture = numbers(len(pos), *size, 2).requires_grad_()
        kind = {"mode": mode, "pairs": pairs, "backend": "torch"}
        outline = raster.blends(frag, depth, pos, tri, topo, **kind)  # type: ignore[arg-type]
        smooth = raster.blend(picture, outline)
        by = torch.autograd.grad((smooth * numbers(*smooth.shape)).sum(), [picture, pos])
        what = f"antialias {mode} {pairs}"
        made |= {f"{what}: from": outline.source, f"{what}: to": outline.target, what: smooth}
        made |= {f"{what}: to image": by[0], f"{what}: to positions": by[1]}
    return made


def check_rasterizer_repeats(setting: Setting) -> Facts:
    """A render and its gradient, three times: the same bits on the device."""
    numerics.fix(setting.device)
    meshes, size = _meshes(6 if setting.toy else 24), 24 if setting.toy else 512
    matrices = clip_matrices(torch.tensor([0.3, 2.0, 4.1]), torch.tensor([1.3, 1.5, 0.9]))
    first, gradient = _render(meshes, matrices, size, "walk", setting.device)
    for _ in range(2):
        again, its_gradient = _render(meshes, matrices, size, "walk", setting.device)
        same(again.soft, first.soft, "mask")
        same(its_gradient, gradient, "gradient")
    return {"numbers compared": 2 * (first.soft.numel() + gradient.numel())}


def check_against_nvdiffrast(setting: Setting) -> Facts:
    """Rasterizer test 20: ids, masks, barycentrics, standard antialiasing and its gradient; nvdiffrast as a backend."""
    if not setting.has("nvdiffrast"):
        raise Skipped("nvdiffrast is missing: our rasterizer is not compared with it")
    import nvdiffrast.torch as dr

    size, cells = (96, 6) if setting.toy else (512, 20)
    verts, faces = (part.to(setting.device) for part in _meshes(cells).mesh(0))
    matrices = clip_matrices(torch.tensor([0.3, 2.0]), torch.tensor([1.3, 1.1])).to(setting.device)
    pos, faces = to_clip(verts[None], matrices[:, None]).contiguous(), faces.contiguous()
    theirs, _ = dr.rasterize(dr.RasterizeCudaContext(device=setting.device), pos, faces, [size, size])
    their_ids = theirs[..., 3].to(torch.int32)
    same(raster.visibility(pos, faces, (size, size), backend="nvdiffrast"), their_ids, "ids as a backend")
    _check_packed_nvdiffrast(pos, faces, size, their_ids)
    ids = raster.visibility(pos, faces, (size, size), backend="torch")
    covered, agree = ids > 0, (ids > 0) & (ids == their_ids)
    apart = covered & (their_ids > 0) & ~agree
    frag = raster.fragments(ids, pos, faces)
    bary, depth = raster.barycentrics(frag, pos)
    mine = raster.to_image(frag, torch.cat([bary[:, :2], depth[:, None]], dim=1))
    inside = raster.to_image(frag, (bary.detach().amin(dim=1, keepdim=True) >= 0).to(bary))[..., 0] > 0
    facts = {
        "ids differ": float(apart.sum() / covered.sum()),
        "masks differ": float((covered != (their_ids > 0)).sum() / covered.sum()),
        "px to the nearest edge where ids differ": float(
            (_edge_distance(frag, pos) * apart).amax() if apart.any() else 0
        ),
        "u, v, z where ids agree": float((mine - theirs[..., :3])[agree & inside].abs().max()),
    }
    facts |= _antialias_against(dr, (pos, faces, verts, matrices), theirs, size)
    within(0.06, {"ids differ": facts["ids differ"]})
    within(0.003 if not setting.toy else 0.02, {"masks differ": facts["masks differ"]})
    within(0.125, {"px to edge": facts["px to the nearest edge where ids differ"]})
    within(1e-4, {key: facts[key] for key in ("u, v, z where ids agree", "antialiased where both acted")})
    within(0.01, {"1 - cosine": 1 - facts["cosine of gradients"]})
    return facts


def _check_packed_nvdiffrast(pos: Tensor, faces: Tensor, size: int, expected: Tensor) -> None:
    """Draw both views as two meshes of one array, with an empty one between them."""
    count, num_vertices = len(faces), pos.shape[1]
    twice = torch.cat([faces, faces + num_vertices])
    ranges = torch.tensor([[0, count], [count, 0], [count, count]])
    where = {"ranges": ranges, "backend": "nvdiffrast"}
    ids = raster.visibility(pos.reshape(-1, 4), twice, (size, size), **where)  # type: ignore[arg-type]
    same(ids[0], expected[0], "first packed mesh")
    assert not ids[1].any(), "an empty mesh is seen"
    same(ids[2] - count * (ids[2] > 0).int(), expected[1], "last packed mesh")


def _edge_distance(frag: raster.Fragments, pos: Tensor) -> Tensor:  # [B, H, W]
    """Return how far pixel centres lie from the edges of the triangle that they see, in pixels; 0 outside."""
    _, height, width = frag.shape
    flat = pos.reshape(-1, 4)
    xy = (flat[:, :2] / flat[:, 3:] * 0.5 + 0.5) * torch.tensor([width, height], device=pos.device)
    corners = xy[frag.vert]
    offset = torch.stack([frag.px, frag.py], dim=1)[:, None] + 0.5 - corners
    way = corners.roll(-1, dims=1) - corners
    cross = way[..., 0] * offset[..., 1] - way[..., 1] * offset[..., 0]
    return raster.to_image(frag, (cross.abs() / way.norm(dim=2).clamp(min=1e-9)).amin(dim=1)[:, None])[..., 0]


def _antialias_against(
    dr: Any, scene: tuple[Tensor, Tensor, Tensor, Tensor], rast: Tensor, size: int
) -> Facts:
    pos, faces, verts, matrices = scene
    generator = torch.Generator().manual_seed(9)
    smooth = torch.randn(1, 1, 8, 8, generator=generator)
    weights = torch.nn.functional.interpolate(smooth, (size, size), mode="bicubic")[:, 0, :, :, None].to(
        pos.device
    )
    leaf = verts.clone().requires_grad_()
    moved = to_clip(leaf[None], matrices[:, None]).contiguous()
    hard = (rast[..., 3:] > 0).float().contiguous()
    theirs = dr.antialias(hard, rast.detach().contiguous(), moved, faces)
    (their_gradient,) = torch.autograd.grad((theirs * weights).sum(), leaf)
    leaf = verts.clone().requires_grad_()
    surface = raster.render_surface(leaf, faces, matrices, (size, size), mode="standard", backend="torch")
    (gradient,) = torch.autograd.grad((surface.soft * weights).sum(), leaf)
    cosine = float((gradient * their_gradient).sum() / (gradient.norm() * their_gradient.norm()))
    assert math.isfinite(cosine), "no gradient"
    apart = (surface.frag.tri_id != rast[..., 3].to(torch.int32)).float()[:, None]
    alike = torch.nn.functional.max_pool2d(apart, 3, 1, 1)[:, 0, :, :, None] == 0
    both = alike & (surface.soft != surface.hard) & (theirs != hard)
    assert both.any(), "no pixel where both acted"
    gap = (surface.soft - theirs).detach().abs()
    return {
        "antialiased masks, mean difference": float(gap.mean()),
        "antialiased where both acted": float(gap[both].quantile(0.99)),
        "antialiased where both acted, largest": float(gap[both].max()),
        "cosine of gradients": cosine,
    }


CHECKS = (
    check_random_numbers,
    check_visibility,
    check_marching_tets,
    check_rasterizer_gradients,
    check_rasterizer_operations,
    check_rasterizer_repeats,
    check_texture_lookup,
    check_generator,
    check_discriminator,
    check_optimizer,
    check_first_step,
    check_against_nvdiffrast,
)
