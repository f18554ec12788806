"""What a run keeps of the data it learns from: a sheet of real images like the generated one, and all cameras."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from get3d_cluster.export.pictures import BACKGROUND
from jobs._originals import chosen_models, nearest_view
from tests import train_setup as setup

SHOWN = ("watch.preview_every_s=1000", "watch.preview_shapes=8", "num_images=16")


def trained(folder: Path, *overrides: str, synsets: tuple[str, ...] = ("02958343",)) -> Any:
    config = setup.tiny_config(setup.dataset(folder / "data", synsets=synsets), *SHOWN, *overrides)
    work = setup.trainer(config, folder / "run")
    while not work.is_done():
        work.step()
    return work


def test_real_images_lie_on_the_grid_and_the_background_of_generated_ones(tmp_path: Path) -> None:
    trained(tmp_path)
    real = Image.open(tmp_path / "run" / "dataset" / "real.png")
    (*_, newest) = sorted((tmp_path / "run" / "samples").glob("*.png"))
    made = Image.open(newest)
    assert real.size == made.size
    assert real.getpixel((1, 1)) == made.getpixel((1, 1)) == BACKGROUND
    pixels = np.asarray(real)
    assert ((pixels == BACKGROUND).all(axis=-1)).mean() < 0.95


def test_more_columns_than_models_stay_empty(tmp_path: Path) -> None:
    trained(tmp_path)
    real = np.asarray(Image.open(tmp_path / "run" / "dataset" / "real.png"))
    ink = (real[68:92] != BACKGROUND).any(axis=(0, 2))  # the first row of pictures, below title and caption
    inked = [ink[left : left + 24].any() for left in range(10, 10 + 8 * 26, 26)]
    assert inked == [True] * setup.NUM_MODELS + [False] * (8 - setup.NUM_MODELS)


def test_cameras_are_counted_once_and_what_is_there_stays(tmp_path: Path) -> None:
    work = trained(tmp_path)
    path = tmp_path / "run" / "dataset" / "cameras.json"
    found = json.loads(path.read_text())
    assert found["num_images"] == setup.NUM_MODELS * setup.NUM_VIEWS
    assert found["azimuth_deg"]["data"] == [0.25, 0, 0.25, 0, 0.25, 0, 0.25, 0]
    assert found["elevation_deg"]["data_range"] == [10.0, 25.0]
    assert found["elevation_deg"]["drawn_range"] == list(work.config.data.elevation_range_deg)
    before = path.stat().st_mtime_ns
    again = setup.trainer(work.config, tmp_path / "run")
    again.step()
    assert path.stat().st_mtime_ns == before


def test_models_are_a_function_of_the_seed_and_of_all_classes_in_turn() -> None:
    models = [f"{synset}/{model}" for synset in ("car", "chair") for model in "abcde"]
    chosen = chosen_models(models, 0, 4, ["chair", "car"])
    assert [model.split("/")[0] for model in chosen] == ["chair", "car", "chair", "car"]
    assert chosen_models(models[::-1], 0, 4, ["chair", "car"]) == chosen
    assert {tuple(chosen_models(models, seed, 4, [])) for seed in range(5)} != {tuple(chosen)}
    assert sorted(chosen_models(models, 0, 99, ["chair", "car"])) == sorted(models)


@pytest.mark.parametrize(("azimuth_deg", "view"), [(10.0, 0), (95.0, 1), (215.0, 2), (350.0, 0)])
def test_the_view_from_the_same_side_is_shown(tmp_path: Path, azimuth_deg: float, view: int) -> None:
    config = setup.tiny_config(setup.dataset(tmp_path / "data"))
    dataset = setup.trainer(config, tmp_path / "run")._dataset
    camera = torch.tensor([np.radians(azimuth_deg), np.radians(75.0)])
    assert nearest_view(dataset, [4, 5, 6, 7], camera) == 4 + view
