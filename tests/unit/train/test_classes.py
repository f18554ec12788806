"""Shapes of a class on demand: labels of the data, classes of generated images, and what both networks do with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.philox import Phase
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.runtime.checkpoint import decode, encode, state_digest
from get3d_cluster.train.classes import draw_classes, in_turn, labels_of
from get3d_cluster.train.previews import latents_of
from tests import train_setup as setup

SYNSETS = ("02958343", "03001627")
BOTH = ("generator.classes=['02958343','03001627']", "discriminator.num_classes=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setup.dataset(tmp_path_factory.mktemp("classes") / "data", synsets=SYNSETS)


@pytest.fixture
def generator(data: Path) -> Generator:
    torch.manual_seed(0)
    return Generator(setup.tiny_config(data, *BOTH).generator)


def samples_of(data: Path) -> Any:
    return ImageDataset(data, 8).samples


def test_an_image_has_the_class_of_its_synset(data: Path) -> None:
    samples = samples_of(data)
    assert labels_of(samples, ()) is None
    for names in (SYNSETS, SYNSETS[::-1]):
        labels = labels_of(samples, names)
        assert labels is not None
        assert [names[i] for i in labels.tolist()] == [sample.key.split("/")[0] for sample in samples]


@pytest.mark.parametrize(
    ("classes", "named"),
    [(("02958343",), "lacks 03001627"), ((*SYNSETS, "03790512"), "names 03790512, which the dataset has no")],
)
def test_classes_that_are_not_the_dataset_s_are_refused(
    data: Path, classes: tuple[str, ...], named: str
) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        labels_of(samples_of(data), classes)
    assert "generator.classes=['02958343', '03001627'], discriminator.num_classes=2" in caught.value.way_out


def test_generated_classes_are_as_frequent_as_the_real_ones_and_keyed_by_the_sample() -> None:
    labels, numbers = torch.tensor([0, 1, 1, 1, 2]), torch.arange(5000)
    drawn = draw_classes(0, 3, Phase.CLASS, numbers, labels)
    assert drawn is not None
    shares = torch.bincount(drawn, minlength=3) / len(numbers)
    assert shares.tolist() == pytest.approx([0.2, 0.6, 0.2], abs=0.03)
    part = draw_classes(0, 3, Phase.CLASS, numbers[70:90], labels)
    assert part is not None
    assert torch.equal(part, drawn[70:90])
    assert draw_classes(0, 3, Phase.CLASS, numbers, None) is None


def test_a_class_changes_geometry_and_texture_and_has_to_be_given(generator: Generator) -> None:
    z = torch.randn(2, 3, 8)
    one, two = (generator.map(z[0], z[1], torch.full((3,), k)) for k in (0, 1))
    assert not torch.allclose(one.geo, two.geo)
    assert not torch.allclose(one.tex, two.tex)
    with pytest.raises(ValueError, match="tells 2 classes apart"):
        generator.map(z[0], z[1])


def test_both_heads_judge_an_image_with_its_class_with_and_without_a_camera(data: Path) -> None:
    for camera in (True, False):
        config = replace(setup.tiny_config(data, *BOTH).discriminator, camera_conditioning=camera)
        discriminator, images, cameras = Discriminator(config), torch.randn(2, 4, 8, 8), torch.rand(2, 2)
        one, two = (discriminator(images, cameras, torch.full((2,), k)) for k in (0, 1))
        assert not torch.allclose(one.rgb, two.rgb)
        assert not torch.allclose(one.mask, two.mask)
        other = discriminator(images, cameras + 1, torch.zeros(2, dtype=torch.int64))
        assert torch.equal(one.rgb, other.rgb) != camera


def test_shapes_that_are_shown_have_the_classes_in_turn_unless_told(generator: Generator) -> None:
    numbers = torch.arange(4)
    turns = latents_of(generator, "preview", 0, numbers)
    told = latents_of(generator, "preview", 0, numbers, classes=torch.tensor([0, 1, 0, 1]))
    assert torch.equal(turns.geo, told.geo)
    assert in_turn(numbers, 0) is None


def test_a_training_with_classes_teaches_the_embeddings_and_resumes_exactly(
    data: Path, tmp_path: Path
) -> None:
    work = setup.trainer(setup.tiny_config(data, *BOTH), tmp_path / "run")
    before = {name: value.clone() for name, value in work.generator.state_dict().items()}
    for _ in range(2):
        work.step()
    saved = decode({name: memoryview(part) for name, part in encode(work.state()).items()})
    work.step()
    embeds = [name for name in before if "embed.weight" in name]
    assert len(embeds) == 2
    assert all(not torch.equal(before[name], work.generator.state_dict()[name]) for name in embeds)
    again = setup.trainer(setup.tiny_config(data, *BOTH), tmp_path / "again")
    again.load(saved)
    again.step()
    assert state_digest(again.state()) == state_digest(work.state())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (BOTH[:1], "names 2 classes, discriminator.num_classes=0"),
        (BOTH[1:], "names 0 classes, discriminator.num_classes=2"),
        (("generator.classes=['a','a']", "discriminator.num_classes=2"), "names a class twice"),
        (("discriminator.num_classes=-1",), "num_classes=-1"),
    ],
)
def test_classes_that_do_not_fit_together_are_refused(overrides: tuple[str, ...], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        setup.tiny_config(Path("data"), *overrides)
