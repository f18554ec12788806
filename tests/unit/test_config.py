"""Configurations: strict reading, the traps of YAML, keys with meanings, differences, jobs by name."""

import subprocess
import sys
import tempfile
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from get3d_cluster.config import (
    anchored,
    differences,
    find_job,
    flat,
    job_names,
    keys,
    load,
    plain,
    read_run_config,
    read_section,
    read_section_or_default,
    save_text,
    show,
    updated_text,
)
from get3d_cluster.core.job import Resources, RetryConfig
from get3d_cluster.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    lr: float = 2e-3
    """Learning rate
    of both."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Decay rates."""
    kind: Literal["adam", "sgd"] = "adam"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be above 0")
        if self.clip is not None and self.clip < self.lr:
            raise UsageError(f"clip={self.clip} must not be below lr", "raise clip")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    seed: int = 0
    """Decides every random number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Parent):
    optim: Optim = Optim(lr=0.5)
    second: Optim | None = None
    resources: Resources = field(default_factory=Resources)
    synsets: tuple[str, ...] = ()
    name: str = "x"
    verbose: bool = False
    level: Literal[1, 2] = 1
    batch: int = field(default=4, metadata={"changeable": True})
    grid: tuple[tuple[int, int], ...] = ()
    out: Path = Path("a")
    backup: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Needs:
    path: str
    """Where the images are."""
    priority: int = 7
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Needs
    """What must be there."""


def load_text(text: str) -> Config:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return read_run_config(Config, Path(file.name))


def refusal(*overrides: str, config_class: type = Config) -> str:
    with pytest.raises(UsageError) as caught:
        load(config_class, None, overrides)
    assert len(f"{caught.value.what}\n{caught.value.way_out}".splitlines()) <= 3
    return caught.value.what


def read(text: str, tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load(Config, path, overrides)


def test_later_layers_win(tmp_path: Path) -> None:
    config = read("optim:\n  lr: 0.1\nseed: 1\n", tmp_path, "seed=2", "seed=3")
    assert (config.optim.lr, config.seed, config.optim.betas) == (0.1, 3, (0.0, 0.99))


def test_defaults_are_those_of_the_class() -> None:
    assert load(Config, None, ()) == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [("03001627", "03001627"), ("12:30:00", "12:30:00"), ("off", "off"), ("no", "no"), ("2958343", "2958343"),
     ("02958343", "02958343"), ("1.10", "1.10"), ("1e5", "1e5"), ("0x1F", "0x1F"), ("2026-01-02", "2026-01-02"),
     ("1_000", "1_000"), ("'true'", "true"), ("=", "="), ("a=b", "a=b"), ("*.png", "*.png"), ("@home", "@home"),
     ("", ""), ("'${HOME'", None)],
)  # fmt: skip
def test_text_stays_as_it_was_written(text: str, value: str | None, tmp_path: Path) -> None:
    if value is None:
        assert "name" in refusal(f"name={text}")
        return
    assert load(Config, None, [f"name={text}"]).name == value
    if text[:1] not in ("*", "@", ""):
        assert read(f"name: {text}\n", tmp_path).name == value


def test_ids_in_a_list_stay_text(tmp_path: Path) -> None:
    ids = ("03001627", "02958343", "3790512")
    assert load(Config, None, ["synsets=[03001627,02958343,3790512]"]).synsets == ids
    assert read("synsets: [03001627, 02958343, 3790512]\n", tmp_path).synsets == ids
    assert read("synsets:\n- 03001627\n- 02958343\n- 3790512\n", tmp_path).synsets == ids


def test_paths_are_paths() -> None:
    config = load(Config, None, ["out=03001627/x", "backup=1.10"])
    assert (config.out, config.backup) == (Path("03001627/x"), Path("1.10"))
    assert {key.path: key.type_text for key in keys(Config)}["backup"] == "path | null"


@dataclass(frozen=True, kw_only=True, slots=True)
class WithSection:
    config: Config = field(default_factory=Config)
    data: Path


def test_relative_paths_are_taken_from_where_the_command_was_given() -> None:
    given = WithSection(config=Config(out=Path("x"), seed=4), data=Path("/abs"))
    found = anchored(given, Path("/home/me"))
    assert (found.config.out, found.data, found.config.backup) == (Path("/home/me/x"), Path("/abs"), None)
    assert found.config.seed == 4


@dataclass(frozen=True, kw_only=True, slots=True)
class WithLocation:
    data: str = field(metadata={"location": True})
    name: str = "cars"
    lists: tuple[Path, ...] = ()


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("packed", "/home/me/packed"),
        ("../packed/", "/home/me/../packed"),
        ("/net/packed", "/net/packed"),
        ("s3://bucket/cars", "s3://bucket/cars"),
        ("simplecache::s3://bucket//cars/", "simplecache::s3://bucket//cars/"),
        ("file:///net/packed", "file:///net/packed"),
        ("s3:/bucket", "/home/me/s3:/bucket"),
    ],
)
def test_a_location_is_a_path_unless_it_is_a_url(typed: str, found: str) -> None:
    assert anchored(WithLocation(data=typed), Path("/home/me")) == WithLocation(data=found)


@pytest.mark.parametrize(("job", "key"), [("check", "data"), ("train", "data.path")])
def test_a_dataset_is_taken_from_where_the_command_was_typed(job: str, key: str) -> None:
    others = ["num_images=8"] if job == "train" else []
    for typed, found in (("packed", "/home/me/packed"), ("s3://b/c", "s3://b/c"), ("/net/c", "/net/c")):
        settings = load(find_job(job).Config, None, [f"{key}={typed}", *others])
        assert flat(anchored(settings, Path("/home/me")))[key] == found


def test_each_path_of_a_list_is_taken_from_there_too() -> None:
    given = WithLocation(data="/d", lists=(Path("train.txt"), Path("/abs/val.txt")))
    assert anchored(given, Path("/home/me")).lists == (Path("/home/me/train.txt"), Path("/abs/val.txt"))


def test_numbers_written_as_people_write_them() -> None:
    config = load(
        Config, None, ["optim.lr=2e-3", "optim.betas=[0, .9]", "optim.clip=3", "seed=-5", "grid=[[1,2]]"]
    )
    assert (config.optim.lr, config.optim.betas, config.optim.clip, config.seed) == (
        0.002,
        (0.0, 0.9),
        3.0,
        -5,
    )
    assert [type(value) for value in (config.optim.clip, config.seed, config.grid[0][0])] == [float, int, int]
    assert load(Config, None, ["optim.clip=null"]).optim.clip is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [("seed=32.5", "a whole number"), ("seed=1.0", "a whole number"), ("seed=true", "a whole number"),
     ("seed='5'", "a whole number"), ("seed=007", "a whole number"), ("seed=null", "a whole number"),
     ("seed=.inf", "a whole number"), ("optim.lr=fast", "a number"), ("optim.lr='3'", "a number"),
     ("optim.lr=false", "a number"), ("optim.lr=.nan", "a number"), ("optim.kind=rmsprop", "one of adam, sgd"),
     ("optim.betas=[0.5]", "a list of 2"), ("optim.betas=[1,2,3]", "a list of 2"), ("optim.betas=0.5", "a list of 2"),
     ("optim=3", "a section"), ("optim=null", "a section"), ("verbose=1", "true or false"), ("verbose=yes", "true or"),
     ("level=true", "one of 1, 2"), ("level=1.0", "one of 1, 2"), ("name=true", "text"), ("name=null", "text"),
     ("name=[a]", "text"), ("name=???", "text"), ("synsets=a", "a list"), ("synsets=[[a]]", "a list"),
     ("out=", "a path"), ("out=true", "a path"), ("backup=[a]", "a path or null"),
     ("optim.clip=high", "a number or null"), ("optim.betas={a: 1}", "a list of 2")],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_key_value_and_type(override: str, expected: str) -> None:
    key, _, value = override.partition("=")
    what = refusal(override)
    assert what.startswith(f"{key}=")
    assert f" must be {expected}" in what
    assert value.strip("'[]{}")[:1] in what.partition(" must be")[0]


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("optim.lrr=1", "optim.lr"), ("sead=1", "seed"), ("lr=1", "optim.lr"), ("node=2", "resources.nodes"),
     ("optim.lr.x=1", "optim.lr"), ("second.lrr=1", "second.lr")],
)  # fmt: skip
def test_an_unknown_key_is_answered_with_the_nearest(override: str, nearest: str) -> None:
    assert refusal(override).endswith(f"; the nearest is {nearest}")


def test_a_refused_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"c\.yaml: unknown key optim\.lrr; the nearest is optim\.lr$"):
        read("optim:\n  lrr: 1\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [("a: [", "not valid YAML: line"), ("- 1\n", "holds no keys"), ("seed: 1\nseed: 2\n", "line 2: seed is given"),
     ("seed: ${batch}\n", "must be a whole number"), ("name: !!python/object:os.system x\n", "line 1"),
     ("name: a${seed}b\n", "without")],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_refused(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        read(text, tmp_path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            load(Config, path, ())


def test_a_word_that_is_no_setting_is_refused() -> None:
    assert "'seed' is no setting" in refusal("seed")
    assert "no setting" in refusal("=5")


def test_resources_may_be_given_without_their_section(tmp_path: Path) -> None:
    assert load(Config, None, ["nodes=4"]).resources.nodes == 4
    assert read("nodes: 4\n", tmp_path).resources.nodes == 4
    config = load(Needs, None, ["path=a", "priority=1"])
    assert (config.priority, config.resources.priority) == (1, 0)  # a key of its own wins


def test_a_value_out_of_range_is_named_with_its_whole_path() -> None:
    assert refusal("resources.nodes=0") == "resources.nodes=0 must be at least 1"
    assert refusal("optim.lr=-1") == "optim.lr=-1.0 must be above 0"
    assert refusal("optim.clip=0.1").startswith("optim.clip=0.1 must not")


def test_a_required_key_is_asked_for() -> None:
    assert refusal(config_class=Needs) == "path must be given"
    assert load(Needs, None, ["path=a"]).path == "a"


def test_a_required_section_is_asked_for_by_a_key_that_can_be_given() -> None:
    assert refusal(config_class=Outer) == "inner.path must be given"
    assert load(Outer, None, ["inner.path=a"]).inner.path == "a"


def test_the_way_out_of_a_refused_value_is_a_command_for_the_job_not_for_its_section() -> None:
    with pytest.raises(UsageError) as caught:
        load(Config, None, ["nodes=0"])
    assert caught.value.way_out == f"see: python launch.py config {__name__}"


@pytest.mark.parametrize("text", ["resources: {nodes: 0}", "resources: {nodse: 1}", "resources: {nodes: x}"])
def test_a_section_of_a_run_that_cannot_be_used_is_mended_in_its_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_section(Resources, path, "resources")
    assert caught.value.way_out == f"mend the section resources of {path}"


def test_an_update_changes_what_differs_and_nothing_else() -> None:
    old = replace(Config(), second=Optim(lr=3.0))
    text = "seed: 0x0\nname: 1e3\nsecond:\n  lr: 3\n"
    assert updated_text(text, old, old) == text
    new = replace(old, batch=8, second=replace(old.second, clip=4.0), optim=Optim(lr=0.25), backup=Path("b"))
    changed = updated_text(text, old, new)
    added = "  clip: 4.0\noptim:\n  lr: 0.25\nbatch: 8\nbackup: b\n"
    assert sorted(changed.splitlines()) == sorted((text + added).splitlines())
    assert load_text(changed) == replace(new, name="1e3")
    assert load_text(updated_text(text, old, replace(old, second=None))).second is None
    born = updated_text("second: null\n", Config(), old)
    assert load_text(born) == old


def test_a_section_that_is_null_comes_into_being_with_a_key_below_it() -> None:
    assert load(Config, None, ()).second is None
    assert load(Config, None, ["second.lr=3"]).second == Optim(lr=3.0)
    assert load(Config, None, ["second.lr=3", "second=null"]).second is None
    assert load(Config, None, ["second=null", "second.lr=3"]).second == Optim(lr=3.0)


def test_keys_have_types_defaults_meanings_and_say_what_may_change() -> None:
    by_path = {key.path: key for key in keys(Config)}
    assert list(by_path)[:3] == ["seed", "optim.lr", "optim.betas"]
    assert by_path["seed"].meaning == "Decides every random number."
    assert by_path["optim.lr"].meaning == "Learning rate of both."
    assert (by_path["optim.lr"].default, by_path["optim.kind"].default) == (0.5, "adam")
    assert by_path["optim.kind"].type_text == "adam | sgd"
    assert by_path["optim.clip"].type_text == "float | null"
    assert by_path["synsets"].type_text == "[str, ...]"
    assert {path for path, key in by_path.items() if key.changeable and "." not in path} == {"batch"}
    assert by_path["resources.nodes"].changeable
    assert by_path["resources.nodes"].meaning.startswith("Machines")
    assert keys(Needs)[0].default is MISSING


def test_differences_name_what_changed_and_whether_it_may() -> None:
    old = Config()
    new = replace(old, seed=1, batch=8, resources=Resources(nodes=2), second=Optim(lr=3.0))
    found = {item.path: item for item in differences(old, new)}
    assert next(iter(found)) == "seed"
    assert (found["seed"].old, found["seed"].new, found["seed"].changeable) == (0, 1, False)
    assert found["batch"].changeable
    assert found["resources.nodes"].changeable
    assert not found["second.lr"].changeable
    assert {path for path in found if not path.startswith("second")} == {"seed", "batch", "resources.nodes"}
    assert differences(old, Config()) == []


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda t: "${" not in t and t != "???"
)
tricky = st.sampled_from(
    ["03001627", "1e5", "off", "null", "~", "true", "", " a ", "a: b", "- a", "#", "0o7", "=", "<<"]
)
configs = st.builds(
    Config,
    seed=st.integers(),
    name=texts | tricky,
    synsets=st.lists(texts | tricky, max_size=3).map(tuple),
    verbose=st.booleans(),
    level=st.sampled_from([1, 2]),
    grid=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), max_size=2).map(tuple),
    optim=st.builds(
        Optim,
        lr=st.floats(min_value=1e-300),
        betas=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
        clip=st.none(),
    ),
    out=st.sampled_from([Path("03001627"), Path("/a b/c"), Path("1e5/off")]),
    backup=st.none() | st.just(Path("null")),
    second=st.none() | st.just(Optim(lr=1e22)),
)


@given(configs)
def test_saved_text_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "saved.yaml"
    path.write_text(save_text(config), encoding="utf-8")
    again = read_run_config(Config, path)
    assert again == config
    assert [type(value) for value in flat(again).values()] == [type(value) for value in flat(config).values()]


@given(texts | tricky)
def test_a_shown_value_can_be_typed_again(text: str) -> None:
    assert load(Config, None, [f"name={show(text)}"]).name == text


def test_values_are_shown_in_the_words_of_yaml() -> None:
    assert [show(value) for value in (True, None, 3, (1, 2), "a", "03001627")] == [
        "true", "null", "3", "[1, 2]", "a", "'03001627'",
    ]  # fmt: skip
    assert plain(Config())["optim"]["betas"] == [0.0, 0.99]


def test_an_unknown_job_is_answered_with_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "jobs"
    package.mkdir()
    for name in ("__init__", "_hidden", "train", "render"):
        (package / f"{name}.py").write_text("KIND = 'steps'\nConfig = int\ndef make(config, session): ...\n")
    (package / "lame.py").write_text("KIND = 'steps'\n")
    (package / "odd.py").write_text("KIND = 'odd'\nConfig = int\nmake = print\n")
    (package / "needy.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name == "jobs" or name.startswith("jobs.")]:
        monkeypatch.delitem(sys.modules, name)
    assert job_names() == ["lame", "needy", "odd", "render", "train"]
    assert find_job("train").KIND == "steps"
    assert find_job("jobs.train") is find_job("train")
    for name, match in [
        ("trian", "there is no job trian; did you mean train"), ("../x", "there is no job"),
        ("no.such.module", "there is no job"), ("lame", "lacks Config, make"), ("odd", "KIND='odd' must be one of"),
        ("needy", "needs the module nowhere_to_be_found"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=match):
            find_job(name)
    for name in [name for name in sys.modules if name == "jobs" or name.startswith("jobs.")]:
        monkeypatch.delitem(sys.modules, name)


def test_looking_up_every_job_imports_no_torch() -> None:
    program = (
        "import sys; from get3d_cluster.config import *; [keys(find_job(n).Config) for n in job_names()];"
    )
    program += "sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    "text, retry",
    [
        (None, RetryConfig()),
        ("retry: {max_crashes: 7, backoff_s: 0.5}", RetryConfig(max_crashes=7, backoff_s=0.5)),
        ("optim: {lr: 1}", RetryConfig()),
        ("retry: [broken", RetryConfig()),
        ("retry: {max_crashes: many}", RetryConfig()),
    ],
)
def test_retry_comes_from_the_runs_configuration_or_its_defaults(tmp_path, text, retry):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    assert read_section_or_default(RetryConfig, path, "retry") == retry
