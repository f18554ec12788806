"""What is computed in fewer bits than float32, and what never is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from get3d_cluster.get3d.ops import Conv, ModulatedConv
from get3d_cluster.runtime.fingerprint import numeric_fingerprint
from get3d_cluster.train import numerics
from tests import train_setup as setup

BF16 = "precision.amp=bf16"
SEPARATE = ("generator.kind=separate", "generator.volume.resolution=8", "generator.volume.channel_base=64",
            "generator.volume.hidden_channels=8")  # fmt: skip
FLEXICUBES = ("generator.grid.kind=flexicubes",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setup.dataset(tmp_path_factory.mktemp("precision") / "data")


@pytest.fixture
def make(tmp_path: Path, data: Path) -> Callable[..., Any]:
    def trainer(*overrides: str) -> Any:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return setup.trainer(setup.tiny_config(data, *overrides), folder)

    return trainer


def types_seen(
    model: nn.Module, call: Callable[[], object], *kinds: type[nn.Module]
) -> dict[str, set[torch.dtype]]:
    """Return the types of the feature maps that each layer of ``kinds`` gets during a call."""
    seen: dict[str, set[torch.dtype]] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda _, inputs: seen.setdefault(name, set()).add(inputs[0].dtype)

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in model.named_modules()
        if isinstance(layer, kinds)
    ]
    call()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("overrides", [(), SEPARATE, FLEXICUBES], ids=["dmtet", "separate", "flexicubes"])
def test_the_trunk_is_in_bf16_and_what_shapes_are_made_of_is_not(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    work = make(BF16, *overrides)
    products: list[torch.dtype] = []
    real = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda b, x, y: (products.append(x.dtype), real(b, x, y))[1])
    kept: list[Any] = []
    generator = work.generator
    latents = generator.map(torch.randn(2, 8), torch.randn(2, 8))
    seen = types_seen(generator, lambda: kept.append(generator.shapes(latents)), ModulatedConv)
    assert set.union(*seen.values()) == {torch.bfloat16}
    (shapes,) = kept
    found = (shapes.sdf, shapes.deformation, shapes.meshes.verts, shapes.planes.tex, shapes.sdf_entropy)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    num_outputs = sum(name.endswith("to_geo") for name, _ in generator.named_modules()) or len(
        generator.texture_trunk.outputs
    )
    assert products[:num_outputs] == [torch.bfloat16] * num_outputs, "outputs of the trunk"
    assert set(products[num_outputs:]) == {torch.float32}, "the fields of distance and deformation"
    del products[:]
    image = generator.image(shapes, latents, torch.tensor([[0.3, 1.2], [2.0, 1.4]]))
    assert set(products) == {torch.bfloat16}, "the field of the texture"
    assert image.dtype == torch.float32


def test_both_discriminators_are_in_bf16_but_for_their_last_layers_and_r1(make: Callable[..., Any]) -> None:
    work = make(BF16)
    judge = work.discriminator
    for call in (lambda: work._generator_phase([]), lambda: work._discriminator_phase([], [])):
        seen = types_seen(judge, call, Conv)
        last = {name: types for name, types in seen.items() if ".last." in name}
        assert set.union(*last.values()) == {torch.float32}
        assert len(last) == 2
        assert set.union(*(seen[name] for name in seen.keys() - last)) == {torch.bfloat16}
    seen = types_seen(judge, lambda: work._r1_phase([]), Conv)
    assert set.union(*seen.values()) == {torch.float32}


def test_r1_keeps_its_bits_and_the_other_phases_only_resemble_theirs(make: Callable[..., Any]) -> None:
    """From equal weights, which are float32 and have gradients in float32 either way."""
    numbers, gradients = [], []
    for overrides in ((), (BF16,)):
        work = make("optim.lr_generator=1e-9", "optim.lr_discriminator=1e-9", *overrides)
        r1 = work._r1_phase([])
        fakes, made = work._generator_phase([])
        judged = work._discriminator_phase(fakes, [])
        numbers.append((r1, torch.tensor([*made.values()]), torch.tensor([*judged.values()])))
        gradients.append({name: p.grad for name, p in work.generator.named_parameters()})
        assert {p.grad.dtype for p in work.generator.parameters()} == {torch.float32}
        assert {p.dtype for p in work.generator.parameters()} == {torch.float32}
    (whole, made, judged), (also_whole, made_bf16, judged_bf16) = numbers
    assert whole == also_whole
    for full, half in ((made, made_bf16), (judged, judged_bf16)):
        assert not torch.equal(full, half)
        torch.testing.assert_close(full, half, rtol=0.03, atol=0.01)
    flat, flat_bf16 = (torch.cat([g.flatten() for g in found.values()]) for found in gradients)
    assert functional.cosine_similarity(flat, flat_bf16, dim=0) > 0.98


def test_people_see_the_average_in_float32(make: Callable[..., Any]) -> None:
    assert make(BF16).average.dtype is None


def test_a_training_in_bf16_goes_on_with_its_bits(make: Callable[..., Any]) -> None:
    from get3d_cluster.runtime.checkpoint import decode, encode, state_digest

    work, other = make(BF16), make(BF16)
    for _ in range(2):
        work.step()
    other.load(decode({name: memoryview(content) for name, content in encode(work.state()).items()}))
    for each in (work, other):
        each.step()
        each.step()  # with R1
    assert state_digest(other.state()) == state_digest(work.state())


def test_tf32_is_for_convolutions_other_than_r1_s_and_the_fingerprint_has_it(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from get3d_cluster.runtime import fingerprint

    during: list[bool] = []
    real = torch.autograd.grad

    def spy(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        during.append(torch.backends.cudnn.allow_tf32)
        return real(*arguments, **options)

    try:
        work = make("precision.tf32=true")
        assert fingerprint._fp32_precisions() == {"matmul": "ieee", "conv": "tf32"}
        monkeypatch.setattr(torch.autograd, "grad", spy)
        work._r1_phase([])
        assert set(during) == {False}
        assert torch.backends.cudnn.allow_tf32
        make()
        assert not torch.backends.cudnn.allow_tf32
        assert "tf32" not in fingerprint._fp32_precisions().values()
    finally:
        numerics.fix("cpu")
    assert numeric_fingerprint("cpu")["fp32"] is None


def test_tf32_stays_on_when_the_penalty_fails() -> None:
    try:
        numerics.fix("cpu", tf32=True)
        with pytest.raises(ValueError, match="no penalty"), numerics.whole_float32():
            raise ValueError("no penalty")
        assert torch.backends.cudnn.allow_tf32
    finally:
        numerics.fix("cpu")
