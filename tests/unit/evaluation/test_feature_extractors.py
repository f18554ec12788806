"""What turns images into features: the user's TorchScript, and what stands in for it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.config import FeaturesConfig
from get3d_cluster.evaluation.features import as_bytes, open_extractor


class Means(torch.nn.Module):
    """Channel means, as a network with pooled features would return them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean(dim=(2, 3))


class Whole(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


class Several(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return x.float(), {"pool": x.float().mean(dim=(2, 3), keepdim=True)}


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pool": x.float().mean(dim=(2, 3), keepdim=True)}


class Switched(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8
        if return_features:
            return x.float().mean(dim=(2, 3))
        return x.float().mean(dim=(1, 2, 3))


class Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.float().mean(dim=(2, 3))
        return torch.where(values > 200, torch.nan, values)


def saved(folder: Path, module: torch.nn.Module) -> Path:
    path = folder / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(path)
    return path


IMAGES = (torch.arange(4 * 3 * 10 * 10) % 256).to(torch.uint8).reshape(4, 3, 10, 10)


def run(
    folder: Path, module: torch.nn.Module, images: torch.Tensor = IMAGES, **settings: object
) -> np.ndarray:
    config = FeaturesConfig(path=saved(folder, module), **settings)
    return open_extractor(config, "cpu").features(images)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda x: x),
        ({"input_range": "0..1"}, lambda x: x / 255),
        ({"input_range": "-1..1"}, lambda x: x / 127.5 - 1),
        ({"input_bytes": True}, lambda x: x),
        ({"batch": 3}, lambda x: x),
    ],
)
def test_images_come_in_the_range_that_was_asked_for(tmp_path: Path, settings: dict, expected) -> None:
    means = IMAGES.float().mean(dim=(2, 3)).numpy()
    assert np.allclose(run(tmp_path, Means(), **settings), expected(means), atol=1e-4)


def test_images_come_in_the_size_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"returned \[4, 3, 299, 299\] for 4 images"):
        run(tmp_path, Whole(), input_px=299)


def test_the_part_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    assert run(tmp_path, Named(), output="pool").shape == (4, 3)
    with pytest.raises(UsageError, match=r"features\.output=logits") as caught:
        run(tmp_path, Named(), output="logits")
    assert "pool" in caught.value.what
    with pytest.raises(UsageError, match="2 parts") as caught:
        run(tmp_path, Several())
    assert "features.output=0" in caught.value.way_out


def test_a_network_with_a_switch_gets_it(tmp_path: Path) -> None:
    assert run(tmp_path, Switched(), return_features=True, input_bytes=True).shape == (4, 3)
    with pytest.raises(UsageError, match=r"returned \[4\] for 4 images"):
        run(tmp_path, Switched(), input_bytes=True)
    with pytest.raises(UsageError, match="does not take") as caught:
        run(tmp_path, Means(), return_features=True)
    assert "return_features" in caught.value.way_out


def test_features_that_are_not_finite_are_refused_with_the_image(tmp_path: Path) -> None:
    images = IMAGES.clone()
    images[2] = 255
    with pytest.raises(UsageError, match="not finite, first for image 2 of 4"):
        run(tmp_path, Broken(), images)


def test_an_absent_file_says_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.pt is not there") as caught:
        open_extractor(FeaturesConfig(path=tmp_path / "nowhere.pt"), "cpu")
    assert "TorchScript" in caught.value.way_out
    assert "not FID" in caught.value.way_out


def test_a_file_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"PK not a module")
    with pytest.raises(UsageError, match="no TorchScript"):
        open_extractor(FeaturesConfig(path=tmp_path / "net.pt"), "cpu")


def test_the_digest_tells_files_and_ways_of_calling_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, Means())
    one = open_extractor(FeaturesConfig(path=path), "cpu").facts
    again = open_extractor(FeaturesConfig(path=path, batch=8), "cpu").facts
    other = open_extractor(FeaturesConfig(path=path, input_range="0..1"), "cpu").facts
    assert one == again
    assert one.digest != other.digest
    assert one.is_users


@pytest.mark.parametrize("offline", ["random-conv", "pooled"])
def test_offline_features_are_fixed_and_tell_images_apart(offline: str) -> None:
    first, second = (open_extractor(FeaturesConfig(offline=offline), "cpu") for _ in range(2))
    images = torch.stack([torch.full((3, 64, 64), 50), torch.full((3, 64, 64), 180)]).to(torch.uint8)
    assert first.facts == second.facts
    assert not first.facts.is_users
    assert (first.features(images) == second.features(images)).all()
    assert np.abs(np.diff(first.features(images), axis=0)).max() > 0.05
    assert first.features(IMAGES).shape == (4, 480 if offline == "random-conv" else 192)


def test_real_images_come_back_as_the_bytes_they_were() -> None:
    pixels = torch.arange(256).reshape(1, 1, 16, 16)
    assert as_bytes(pixels / 127.5 - 1).flatten().tolist() == list(range(256))
    assert as_bytes(torch.tensor([[[[-3.0, 2.0]]]])).flatten().tolist() == [0, 255]


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match="input_bytes"):
        FeaturesConfig(input_bytes=True, input_range="0..1")
