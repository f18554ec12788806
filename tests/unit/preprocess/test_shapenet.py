from pathlib import Path

import pytest

from get3d_cluster.errors import UsageError
from preprocess.shapenet import find_models


def add(root: Path, name: str, text: str = "v 0 0 0\nf 1 1 1\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_models_of_both_layouts_are_found_sorted_with_their_zeros(tmp_path: Path) -> None:
    add(tmp_path, "03001627/00b/model.obj")
    add(tmp_path, "02958343/0a2/models/model_normalized.obj")
    add(tmp_path, "02958343/0a1/model.obj")
    add(tmp_path, "02958343/readme.txt")
    found = find_models(tmp_path)
    assert [(m.synset, m.model) for m in found.models] == [
        ("02958343", "0a1"),
        ("02958343", "0a2"),
        ("03001627", "00b"),
    ]
    assert found.models[1].obj == tmp_path / "02958343/0a2/models/model_normalized.obj"
    assert not found.left_out
    assert [m.model for m in find_models(tmp_path, ["03001627"]).models] == ["00b"]


def test_each_left_out_model_says_why(tmp_path: Path) -> None:
    add(tmp_path, "s/good/model.obj", "mtllib my file.mtl\nv 0 0 0\n")
    add(tmp_path, "s/good/my file.mtl")
    add(tmp_path, "s/bare/note.txt")
    add(tmp_path, "s/blank/model.obj", " \n")
    add(tmp_path, "s/pure/model.obj", "# nothing here\n")
    add(tmp_path, "s/naked/model.obj", "mtllib model.mtl\nv 0 0 0\n")
    found = find_models(tmp_path)
    assert [m.model for m in found.models] == ["good"]
    assert {left.model: left.why for left in found.left_out} == {
        "bare": "has no model.obj",
        "blank": "model.obj is empty",
        "naked": "model.mtl, named by model.obj, is missing",
        "pure": "model.obj does not begin with vertices",
    }


@pytest.mark.parametrize("read_as", ["787351", "3001627"])
def test_a_synset_that_lost_its_zeros_is_recognised(tmp_path: Path, read_as: str) -> None:
    add(tmp_path, "03001627/m/model.obj")
    with pytest.raises(UsageError, match=read_as) as caught:
        find_models(tmp_path, [read_as])
    assert '"03001627"' in caught.value.way_out


def test_nothing_usable_is_an_error_that_names_the_first_reason(tmp_path: Path) -> None:
    add(tmp_path, "s/m/model.obj", "")
    with pytest.raises(UsageError, match=r"s/m: model\.obj is empty"):
        find_models(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        find_models(tmp_path / "missing")
