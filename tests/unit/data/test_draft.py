"""A first configuration for a folder of images: what is found, what is said, and that the draft can be trained on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from get3d_cluster import config as configuration
from get3d_cluster.cli.entry import run as command
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.data.draft import draft, survey
from get3d_cluster.errors import UsageError
from get3d_cluster.train.fit import check_box, check_room, small_masks
from jobs.train import Config
from tests import train_setup as setup


def rendered(
    folder: Path, *, models: int = 3, views: int = 2, size: int = 128, mode: str = "RGBA", high: float = 44.2
) -> Path:
    """Write blank images and cameras."""
    for number in range(models):
        images, cameras = (folder / kind / "02958343" / f"m{number}" for kind in ("img", "camera"))
        images.mkdir(parents=True)
        cameras.mkdir(parents=True)
        for view in range(views):
            Image.new(mode, (size, size)).save(images / f"{view:03d}.png")
        np.save(cameras / "rotation.npy", np.zeros(views))
        np.save(cameras / "elevation.npy", np.linspace(3.5, high, views))
    return folder


def trained_on(text: str, folder: Path) -> Config:
    file = folder / "draft.yaml"
    file.write_text(text)
    return configuration.load(Config, file, [])


def test_a_draft_says_what_the_images_are(tmp_path: Path) -> None:
    found = survey(rendered(tmp_path / "images"))
    assert (found.num_models, found.num_images, found.views, found.troubles) == (3, 6, (2, 2), ())
    config = trained_on(draft(found, tmp_path / "images", tmp_path / "packed"), tmp_path)
    assert config.data.path == str(tmp_path / "packed")
    assert config.data.elevation_range_deg == (3, 45)
    assert config.generator.render.image_size_px == config.discriminator.image_size_px == 128
    assert config.gamma_factor == 1 / 64


def drawn(folder: Path, box: tuple[int, int, int, int], *, size: int = 128) -> Path:
    """Write images of which the first of each model shows a rectangle of that box."""
    rendered(folder, size=size)
    for path in folder.glob("img/*/*/000.png"):
        picture = Image.new("RGBA", (size, size))
        picture.paste((200, 10, 10, 255), box)
        picture.save(path)
    return folder


def test_the_box_of_shapes_is_guessed_from_what_the_images_show(tmp_path: Path) -> None:
    found = survey(drawn(tmp_path / "images", (32, 40, 96, 100)))  # half of the image from its middle
    text = draft(found, tmp_path / "images", tmp_path / "packed")
    # at the middle, 1.2 away, half an image is 1.2 * 16 / 35 = 0.549 wide; a box of 0.62 holds 36 / 64 of it
    assert trained_on(text, tmp_path).generator.grid.scale == 0.65
    assert "# a guess: holds what 6 images show" in text
    aside = survey(drawn(tmp_path / "aside", (100, 60, 120, 70)))
    assert trained_on(draft(aside, tmp_path, tmp_path), tmp_path).generator.grid.scale == 1.0
    nothing = draft(survey(rendered(tmp_path / "blank")), tmp_path, tmp_path)
    assert trained_on(nothing, tmp_path).generator.grid.scale == 1.0
    assert "none of 6 images shows anything" in nothing


def test_the_guess_for_a_packed_dataset_suits_its_images(tmp_path: Path) -> None:
    found = survey(setup.dataset(tmp_path / "packed", size=64))
    config = trained_on(draft(found, tmp_path / "packed", tmp_path / "packed"), tmp_path)
    images = ImageDataset(config.data.path, 64, config.data.mask).batch(range(20))
    masks = small_masks(images[0][:, 3])
    check_box(masks, images[1], config.generator)
    check_room(masks, config.generator)
    assert found.num_opened == 20


@pytest.mark.parametrize(("size", "wanted"), [(64, 64), (100, 64), (700, 512), (1024, 1024), (2000, 1024)])
def test_the_size_to_train_at_is_the_largest_that_no_image_falls_short_of(
    tmp_path: Path, size: int, wanted: int
) -> None:
    found = survey(rendered(tmp_path / "images", models=1, size=size))
    config = trained_on(draft(found, tmp_path, tmp_path), tmp_path)
    assert config.generator.render.image_size_px == wanted
    assert bool(config.generator.grid.tet_res) == (wanted == 1024)


def test_a_packed_dataset_is_read_from_its_index(tmp_path: Path) -> None:
    found = survey(setup.dataset(tmp_path / "packed", size=64))
    assert found.is_packed
    assert (found.num_models, found.views, found.sizes_px, found.elevation_deg) == (
        5,
        (4, 4),
        (64,),
        (10, 25),
    )


def test_what_is_wrong_with_images_is_named(tmp_path: Path) -> None:
    folder = rendered(tmp_path / "images", models=5)
    models = folder / "img" / "02958343"
    (folder / "camera" / "02958343" / "m0" / "elevation.npy").unlink()
    (models / "m1" / "002.png").write_bytes(b"no picture")
    Image.new("RGB", (128, 128)).save(models / "m2" / "000.png")
    Image.new("RGBA", (128, 96)).save(models / "m3" / "001.png")
    said = "\n".join(survey(folder).lines())
    for trouble in (
        "02958343/m0: camera/02958343/m0/elevation.npy is missing",
        "02958343/m1: 3 images, but 2 cameras",
        "002.png cannot be read",
        "m2/000.png has no alpha channel",
        "m3/001.png is not square: 128 x 96 px",
    ):
        assert trouble in said


def test_what_the_job_pack_would_refuse_is_named_before(tmp_path: Path) -> None:
    folder = rendered(tmp_path / "images", models=5)
    models, cameras = (folder / kind / "02958343" for kind in ("img", "camera"))
    (cameras / "m0" / "rotation.npy").unlink()
    (cameras / "m1" / "elevation.npy").write_bytes(b"")
    np.save(cameras / "m2" / "elevation.npy", np.zeros((2, 1)))
    (models / "m3" / "001.png").rename(models / "m3" / "view1.png")
    (models / "m4" / "Thumbs.db").touch()
    troubles = [trouble.split(": ", 2)[:2] for trouble in survey(folder).troubles]
    assert [tuple(trouble) for trouble in troubles] == [
        ("02958343/m0", "camera/02958343/m0/rotation.npy is missing"),
        ("02958343/m1", "camera/02958343/m1/elevation.npy cannot be read"),
        (
            "02958343/m2",
            "camera/02958343/m2/elevation.npy cannot be read",
        ),
        ("02958343/m3", "view1.png is in its folder, which must hold 000.png, 001.png and so on alone"),
        ("02958343/m4", "Thumbs.db is in its folder, which must hold 000.png, 001.png and so on alone"),
    ]


def test_a_draft_names_folders_with_any_characters(tmp_path: Path) -> None:
    packed = tmp_path / 'my "cars": v2 #3'
    found = survey(rendered(tmp_path / "images"))
    assert trained_on(draft(found, tmp_path, packed), tmp_path).data.path == str(packed)


def test_a_folder_of_another_layout_is_told_apart(tmp_path: Path) -> None:
    rendered(tmp_path / "images")
    with pytest.raises(UsageError, match="it holds 02958343") as error:
        survey(tmp_path / "images" / "img")
    assert str(tmp_path / "images") in error.value.way_out
    with pytest.raises(UsageError, match="no such folder"):
        survey(tmp_path / "none")
    (tmp_path / "empty" / "img").mkdir(parents=True)
    with pytest.raises(UsageError, match="it is empty"):
        survey(tmp_path / "empty")


def test_the_verb_writes_a_file_once_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rendered(tmp_path / "images")
    assert command(["init-dataset", "images", "--out", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "run pack images=images out=images-packed" in said
    assert "submit train --config mine.yaml --name mine" in said
    assert configuration.load(Config, tmp_path / "mine.yaml", []).data.path == str(tmp_path / "images-packed")
    before = (tmp_path / "mine.yaml").read_bytes()
    assert command(["init-dataset", "images", "--out", "mine.yaml"]) == 2
    assert (tmp_path / "mine.yaml").read_bytes() == before


def test_the_verb_ends_with_2_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rendered(tmp_path / "images", mode="RGB")
    assert command(["init-dataset", "images"]) == 2
    shown = capsys.readouterr()
    assert "no alpha channel" in shown.out
    assert "wrong with images" in shown.err
