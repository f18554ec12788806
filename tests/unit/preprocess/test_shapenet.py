"""The index of models: layouts, lists, links, why something is left out, and that nothing remembered is stale."""

import os
import time
from pathlib import Path

import pytest

from get3d_cluster.errors import UsageError
from preprocess import listing
from preprocess.listing import Listings
from preprocess.lists import read_lists
from preprocess.shapenet import LeftOut, find_models, look_again


def add(root: Path, name: str, text: str = "v 0 0 0\nf 1 1 1\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(found) -> list[str]:
    return [f"{item.synset}/{item.model}" for item in found.models]


def reasons(found) -> dict[str, str]:
    return {f"{item.synset}/{item.model}": item.why for item in found.left_out}


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders count as settled at once: the time of change of a folder's own record cannot be set back."""
    monkeypatch.setattr(listing, "UNSETTLED_S", 0.0)


def test_models_of_both_layouts_are_found_sorted_with_their_zeros(tmp_path: Path) -> None:
    add(tmp_path, "03001627/00b/model.obj")
    add(tmp_path, "02958343/0a2/models/model_normalized.obj")
    add(tmp_path, "02958343/0a2/images/texture0.jpg")
    add(tmp_path, "02958343/0a1/model.obj")
    add(tmp_path, "02958343/readme.txt")
    found = find_models(tmp_path)
    assert names(found) == ["02958343/0a1", "02958343/0a2", "03001627/00b"]
    assert found.models[1].path == tmp_path / "02958343/0a2/models/model_normalized.obj"
    assert not found.left_out
    assert names(find_models(tmp_path, ["03001627"])) == ["03001627/00b"]


def test_plain_folders_and_objaverse_s_layout_are_recognised(tmp_path: Path) -> None:
    for name in ("chair one.obj", "lamp.GLB", "mug.ply", "vase.gltf", "vase.bin", "notes.txt"):
        add(tmp_path / "plain", name)
    assert names(find_models(tmp_path / "plain")) == [
        f"plain/{n}" for n in ("chair one", "lamp", "mug", "vase")
    ]
    add(tmp_path / "objaverse", "glbs/000-001/ab12.glb")
    add(tmp_path / "objaverse", "glbs/000-000/cd34.glb")
    add(tmp_path / "objaverse", "metadata/000-000.json.gz")
    assert names(find_models(tmp_path / "objaverse")) == ["000-000/cd34", "000-001/ab12"]
    assert names(find_models(tmp_path / "objaverse" / "glbs", ["000-001"])) == ["000-001/ab12"]


def test_one_category_alone_gets_the_names_it_has_among_others(tmp_path: Path) -> None:
    add(tmp_path, "02958343/0a1/model.obj")
    add(tmp_path, "02958343/0a2/models/model_normalized.obj")
    assert names(find_models(tmp_path / "02958343")) == names(find_models(tmp_path))
    assert names(find_models(tmp_path / "02958343", ["02958343"])) == names(find_models(tmp_path))


def test_a_folder_with_one_model_of_any_name_is_a_model_and_with_several_is_not(tmp_path: Path) -> None:
    add(tmp_path, "cars/good/model.obj")
    add(tmp_path, "cars/beetle/beetle v2.glb")
    add(tmp_path, "cars/pair/a.obj")
    add(tmp_path, "cars/pair/b.ply")
    add(tmp_path, "cars/bare/note.txt")
    (tmp_path / "cars" / "odd" / "model.obj").mkdir(parents=True)
    found = find_models(tmp_path)
    assert names(found) == ["cars/beetle", "cars/good"]
    assert found.models[0].path.name == "beetle v2.glb"
    why = reasons(found)
    assert why["cars/pair"] == "holds 2 models (a.obj, b.ply) and none is called model.obj"
    assert why["cars/bare"].startswith("holds no model: no model.obj")
    assert why["cars/odd"] == "its model.obj is no file, or a link that leads nowhere"


def test_of_files_with_one_name_the_first_kind_is_taken(tmp_path: Path) -> None:
    add(tmp_path, "cars/a.glb")
    add(tmp_path, "cars/a.obj")
    found = find_models(tmp_path)
    assert [item.path.name for item in found.models] == ["a.obj"]
    assert reasons(found) == {"cars/a.glb": "has the name of a.obj, which is taken"}


def test_links_are_followed_outwards_and_not_in_circles_or_twice(tmp_path: Path) -> None:
    root = tmp_path / "root"
    add(root, "cars/a/model.obj")
    add(tmp_path, "elsewhere/x/model.obj")
    for link, target in {
        "cars/0-same-as-a": "a",
        "cars/outside": tmp_path / "elsewhere" / "x",
        "cars/up": "..",
        "cars/itself": "itself",
        "cars/nowhere": "gone",
        "autos": "cars",
    }.items():
        (root / link).symlink_to(target)
    found = find_models(root)
    assert names(found) == ["cars/a", "cars/outside"]
    assert reasons(found) == {
        "autos/": "is a link to the category cars",
        "cars/0-same-as-a": "is a link to cars/a, which is rendered",
        "cars/itself": "is a link that leads nowhere",
        "cars/nowhere": "is a link that leads nowhere",
        "cars/up": "is a link to a folder above it",
    }
    assert names(find_models(root, ["autos"])) == ["autos/a", "autos/outside"]


def test_a_link_that_cannot_be_followed_hides_nothing_else(tmp_path: Path) -> None:
    add(tmp_path, "cars/a.obj")
    add(tmp_path, "cars/b/model.obj")
    (tmp_path / "cars" / "c").symlink_to("x" * 300)
    (tmp_path / "cars" / "d").mkdir()
    (tmp_path / "cars" / "d" / "any.obj").symlink_to("x" * 300)
    found = find_models(tmp_path)
    assert names(found) == ["cars/a", "cars/b"]
    assert reasons(found) == {
        "cars/c": "is a link that leads nowhere",
        "cars/d": "its any.obj is no file, or a link that leads nowhere",
    }


def test_names_that_no_folder_of_images_can_have_are_left_out(tmp_path: Path) -> None:
    add(tmp_path, 'cars/it\'s "a" car; 50% off/model.obj')
    add(tmp_path, f"cars/{'x' * 250}/model.obj")
    add(tmp_path, f"cars/{'y' * 151}/model.obj")  # too long for a tar file by one byte
    bad = os.fsencode(tmp_path / "cars") + b"/caf\xe9"
    Path(os.fsdecode(bad)).mkdir()
    (Path(os.fsdecode(bad)) / "model.obj").write_text("v 0 0 0\n")
    found = find_models(tmp_path)
    assert names(found) == ['cars/it\'s "a" car; 50% off']
    why = reasons(found)
    assert why["cars/caf\\udce9"] == "its name is not UTF-8: rename it"
    for name in ("x" * 250, "y" * 151):
        assert why[f"cars/{name}"] == "its name is too long: rename it"


def test_lists_choose_models_by_id_or_by_category_and_id(tmp_path: Path) -> None:
    for name in ("02958343/a", "02958343/b", "03001627/a", "03001627/c"):
        add(tmp_path / "models", f"{name}/model.obj")
    lines = add(tmp_path, "train.txt", "# ids\nb\r\n\n 03001627/a/ \ngone\nb\n")
    found = find_models(tmp_path / "models", wanted=read_lists([lines]))
    assert names(found) == ["02958343/b", "03001627/a"]
    assert reasons(found) == {
        "02958343/a": "not in train.txt",
        "03001627/c": "not in train.txt",
        "/gone": "in train.txt, but not there",
    }


def test_shapenet_s_table_chooses_by_split_even_without_the_zeros(tmp_path: Path) -> None:
    for name in ("02958343/a", "02958343/b", "03001627/c"):
        add(tmp_path / "models", f"{name}/model.obj")
    table = add(
        tmp_path,
        "all.csv",
        "\ufeffid,synsetId,subSynsetId,modelId,split\n1,2958343,1,a,train\n2,02958343,1,b,val\n3,3001627,1,c,train\n"
        "4,3001627,1,gone,train\n",
    )
    train = read_lists([table], ["train"])
    assert names(find_models(tmp_path / "models", wanted=train)) == ["02958343/a", "03001627/c"]
    cars = find_models(tmp_path / "models", ["02958343"], train)
    assert reasons(cars) == {"02958343/b": "not in all.csv (train)"}
    assert names(find_models(tmp_path / "models", wanted=read_lists([table], ["val"]))) == ["02958343/b"]


@pytest.mark.parametrize(
    ("name", "text", "splits", "message"),
    [
        ("all.csv", "id,synsetId,modelId,split\n1,1,a,train\n", ["test"], "has no 'test'"),
        ("all.csv", "id,modelId\n1,a\n", [], "no column synsetId"),
        ("list.txt", "a\n", ["train"], "no column 'split'"),
        ("list.txt", "# nothing\n", [], "names no model"),
    ],
)
def test_lists_that_choose_nothing_are_refused(
    tmp_path: Path, name: str, text: str, splits: list, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_lists([add(tmp_path, name, text)], splits)


def test_lists_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_lists([tmp_path / "gone.txt"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match="is no text"):
        read_lists([tmp_path / "binary.txt"])
    with pytest.raises(UsageError, match="chooses from no list"):
        read_lists([], ["train"])


@pytest.mark.usefixtures("trusting")
def test_what_is_remembered_is_never_stale(tmp_path: Path) -> None:
    root, memory = tmp_path / "root", tmp_path / "listing.json"
    for name in ("a", "b", "c", "d"):
        add(root, f"cars/{name}/model.obj")
    add(root, "cars/late/note.txt")
    (root / "cars/link").symlink_to(tmp_path / "other")

    def found():
        return find_models(root, listings=Listings(memory))

    assert names(found()) == ["cars/a", "cars/b", "cars/c", "cars/d"]
    assert memory.is_file()
    add(root, "cars/new/model.obj")
    (root / "cars/d/model.obj").unlink()
    (root / "cars/d").rmdir()
    assert names(found()) == ["cars/a", "cars/b", "cars/c", "cars/new"]
    add(root, "cars/late/model.obj")  # does not touch the folder cars
    add(tmp_path, "other/model.obj")
    assert names(found()) == ["cars/a", "cars/b", "cars/c", "cars/late", "cars/link", "cars/new"]
    (root / "cars/a/model.obj").rename(root / "cars/a/renamed.obj")
    add(root, "cars/b/second.obj")
    (root / "cars/c/model.obj").unlink()
    a, b, c = (look_again(item) for item in found().models[:3])
    assert (a.path.name, b.path.name) == ("renamed.obj", "model.obj")
    assert isinstance(c, LeftOut)
    assert "holds no model" in c.why


@pytest.mark.usefixtures("trusting")
def test_a_remembered_listing_equals_a_fresh_one_and_looks_at_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, memory = tmp_path / "root", tmp_path / "listing.json"
    for index in range(600):
        add(root, f"{index % 3}/{index:04d}/model.obj")
        add(root, f"{index % 3}/{index:04d}.glb")
    first = find_models(root, listings=Listings(memory))
    monkeypatch.setattr(listing, "_only_model_file", None)
    monkeypatch.setattr(listing, "MODEL_FILES", ())
    monkeypatch.setattr(listing, "_may_be_model", None)
    with pytest.raises(TypeError):
        find_models(root)
    known = Listings(memory)
    assert [look for index in range(3) for look in known.read(root / str(index)).values() if not look.why]
    assert len(first.models) == 600
    assert len(first.left_out) == 600


def test_a_folder_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    root, memory = tmp_path / "root", tmp_path / "listing.json"
    add(root, "cars/a/model.obj")
    find_models(root, listings=Listings(memory))
    assert not memory.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 0}', b"\xff\xff"])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, content: bytes) -> None:
    add(tmp_path, "root/cars/a/model.obj")
    (tmp_path / "listing.json").write_bytes(content)
    assert names(find_models(tmp_path / "root", listings=Listings(tmp_path / "listing.json"))) == ["cars/a"]


@pytest.mark.parametrize("read_as", ["787351", "3001627"])
def test_a_synset_that_lost_its_zeros_is_recognised(tmp_path: Path, read_as: str) -> None:
    add(tmp_path, "03001627/m/model.obj")
    with pytest.raises(UsageError, match=read_as) as caught:
        find_models(tmp_path, [read_as])
    assert '"03001627"' in caught.value.way_out


def test_nothing_usable_is_an_error_that_names_the_first_reason(tmp_path: Path) -> None:
    add(tmp_path, "s/m/model.txt", "")
    with pytest.raises(UsageError, match=r"s/m: holds no model"):
        find_models(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        find_models(tmp_path / "missing")
    add(tmp_path, "zipped/02958343.zip")
    with pytest.raises(UsageError) as caught:
        find_models(tmp_path / "zipped")
    assert caught.value.way_out == "unpack 02958343.zip and its like first"


@pytest.mark.long
def test_fifty_thousand_models_are_listed_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, memory = tmp_path / "root", tmp_path / "listing.json"
    for index in range(50_000):
        folder = root / f"{index % 55:08d}" / f"{index:032x}"
        folder.mkdir(parents=True)
        (folder / "model.obj").touch()
    monkeypatch.setattr(listing, "UNSETTLED_S", 0.0)
    seconds = []
    for _ in range(2):
        begun = time.monotonic()
        found = find_models(root, listings=Listings(memory))
        seconds.append(time.monotonic() - begun)
        assert len(found.models) == 50_000
    print(f"50,000 models: first listing {seconds[0]:.2f} s, then {seconds[1]:.2f} s")
    assert seconds[1] < min(5, seconds[0])
