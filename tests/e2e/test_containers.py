"""The images of docker/, without a container engine: their steps as the Dockerfiles have them, in a bare Debian.

Debian is made by debootstrap, which also makes the debian:*-slim images. All mounts are made in a mount namespace that
ends with each command, so nothing is mounted any more when a folder is removed. Where packages come from is taken over
from this machine: its Debian mirror, pip's settings (folders and files that they name are bound in), its proxies.
`PIP_FIND_LINKS=FOLDER` brings torch's wheel from outside; otherwise it is downloaded, with all of CUDA.
"""

import ast
import os
import pickle
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from submitit.core.utils import DelayedSubmission

from get3d_cluster.cli.snapshot import REPOSITORY
from get3d_cluster.runtime.run_folder import RunFolder
from tests import train_setup

DOCKER = REPOSITORY / "docker"
DOCKER_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where engines look for programs when an image does not say."""
NOBODY = "12345:12345"
"""A user whom the image does not know, without a home."""
OWN = {"HOME": "/nonexistent", "GET3D_QUEUE": "/tmp/queue", "OMP_NUM_THREADS": "1"}
"""What launch.py needs of such a user."""
LEAST_FREE_BYTES = 20e9
STEP_S = 1200
PIP_OPTIONS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "trusted-host",
    "proxy",
    "cert",
    "client-cert",
    "default-timeout",
    "timeout",
    "retries",
)
PASSED_ON = re.compile(r"(?i)(https?|no|all)_proxy|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE")
WRITTEN_INSTEAD = ("LABEL", "CMD")
"""Words of a Dockerfile that change no file."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One instruction of a Dockerfile."""

    word: str
    rest: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """FROM to the next FROM."""

    base: str
    name: str
    steps: tuple[Step, ...]


@dataclass
class Built:
    """A folder that became an image, and what the engine would remember of it."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": DOCKER_PATH})
    workdir: str = "/"


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What a build gets of this machine: variables for its commands, and where it sees the paths that these name."""

    variables: dict[str, str]
    binds: dict[Path, str]


def instructions(text: str) -> list[Step]:
    """Return the instructions of a Dockerfile, with continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.strip().partition(" ") for line in joined.splitlines()]
    return [Step(word=word.upper(), rest=rest.strip()) for word, _, rest in split]


def stages(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile; ARGs before the first FROM belong to none."""
    found: list[Stage] = []
    for step in instructions(text):
        if step.word == "FROM":
            base, _, name = step.rest.partition(" AS ")
            found.append(Stage(base=base, name=name, steps=()))
        elif found:
            last = found.pop()
            found.append(Stage(base=last.base, name=last.name, steps=(*last.steps, step)))
    return found


def default_build(text: str) -> tuple[str, list[Step]]:
    """Return the image that a build without --target begins with, and all steps from there."""
    known = stages(text)
    steps, stage = list(known[-1].steps), known[-1]
    while earlier := [each for each in known if each.name and each.name == stage.base]:
        stage = earlier[0]
        steps = [*stage.steps, *steps]
    return stage.base, steps


def expanded(text: str, env: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: env.get(match[1], ""), text)


def assignments(rest: str, env: dict[str, str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in shlex.split(rest)]
    return {name: expanded(value, env) for name, _, value in pairs}


def project_files() -> list[str]:
    """Return what a clean clone has, or would have after a commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    names = listed.stdout.decode().split("\0")
    return [name for name in names if name and (REPOSITORY / name).is_file()]


def copied(rest: str) -> dict[str, str]:
    """Return target (relative to the work folder) by source of a COPY, as engines do it: a folder's content."""
    *sources, target = rest.split()
    assert not any(word.startswith("--") for word in sources), rest
    found = {}
    for source in sources:
        if (REPOSITORY / source).is_dir():
            below = [name for name in project_files() if name.startswith(source + "/")]
            assert below, f"COPY {source}: nothing of it is in a clone"
            found |= {name: target + name.removeprefix(source) for name in below}
        else:
            assert source in project_files(), f"COPY {source}: it is not in a clone"
            assert target.endswith("/") or len(sources) == 1, rest
            found[source] = target + Path(source).name if target.endswith("/") else target
    return found


def pip_settings() -> dict[str, str]:
    """Return this machine's settings of pip as the variables that mean the same."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    lines = [line.partition("=") for line in listed.stdout.splitlines()]
    values = {
        key.rpartition(".")[2]: " ".join(ast.literal_eval(value).split())
        for section in ("global.", "install.", ":env:.")  # a later one wins
        for key, _, value in lines
        if key.startswith(section)
    }
    return {f"PIP_{key.upper().replace('-', '_')}": values[key] for key in PIP_OPTIONS if key in values}


def outside() -> Outside:
    """Return what this machine lends to a build.

    Folders keep their place, with an index its files beside it. Files are certificates: packages write their own there.
    """
    others = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    binds, variables = dict[Path, str](), dict[str, str]()
    for name, value in {**others, **pip_settings()}.items():
        for path in (Path(word.removeprefix("file://")) for word in value.split()):
            if path.is_absolute() and path.is_dir():
                folder = path.parent if path.name == "simple" else path
                binds[folder] = str(folder)
            elif path.is_absolute() and path.is_file():
                binds[path] = f"/run/outside/{path.name}"
        variables[name] = " ".join(binds.get(Path(word), word) for word in value.split())
    return Outside(variables=variables, binds=binds)


def mirror(suite: str) -> str:
    """Return where this machine gets that Debian from, or Debian's own address."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return next((row[1] for row in rows if row[0] == suite), "http://deb.debian.org/debian")


def apt_settings() -> str:
    """Return how this machine's apt reaches its mirrors: proxies, certificates, clocks."""
    dumped = subprocess.run(
        ["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = re.compile(r"Acquire::(https?|Check|Retries|Force)", re.IGNORECASE)
    return "".join(line + "\n" for line in dumped.stdout.splitlines() if wanted.match(line))


def in_namespace(
    root: Path, command: list[str], *, binds: dict[Path, str], read_only: bool, user: str = ""
) -> list[str]:
    """Return the command line that runs ``command`` with ``root`` as its file system and processes of its own.

    Every mount is made in a namespace that is gone when the command is.
    """
    inside = shlex.quote(str(root))
    lines = ["set -e", f"mount --bind {inside} {inside}", f"mount -t proc proc {inside}/proc"]
    lines.append(f"mount -t tmpfs -o mode=755 tmpfs {inside}/dev")
    nodes = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")]
    lines += [f": > {inside}{node}; mount --bind {node} {inside}{node}" for node in nodes]
    lines.append(f"mkdir -m 1777 {inside}/dev/shm; ln -s /proc/self/fd {inside}/dev/fd")
    lines.append(f"ln -s /proc/self/fd/0 {inside}/dev/stdin")
    for source, target in binds.items():
        place = shlex.quote(str(root / target.lstrip("/")))
        make = f"mkdir -p {place}" if source.is_dir() else f"mkdir -p $(dirname {place}); : > {place}"
        lines.append(f"{make}; mount --bind {shlex.quote(str(source))} {place}")
    if read_only:
        lines.append(f"mount -t tmpfs -o mode=1777 tmpfs {inside}/tmp; mount -o remount,bind,ro {inside}")
    who = f"--userspec={user} " if user else ""
    lines.append(f"exec chroot {who}{inside} {shlex.join(command)}")
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    return [*own, "sh", "-c", "\n".join(lines)]


def done(words: list[str], what: str) -> str:
    """Run a command to its end and return what it said; fail with all of it."""
    ended = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=STEP_S, check=False
    )
    assert ended.returncode == 0, f"{what}\n{ended.stdout[-6000:]}"
    return ended.stdout


def build(dockerfile: str, bare: Path, root: Path) -> Built:
    """Do the steps of a Dockerfile in a copy of the bare system."""
    _, steps = default_build((DOCKER / dockerfile).read_text())
    done(["cp", "-a", "--reflink=auto", str(bare), str(root)], "cp")
    lent, image, arguments = outside(), Built(root), dict[str, str]()
    for step in steps:
        if step.word == "RUN":
            assert not step.rest.startswith(("--", "[")), step
            given = {**lent.variables, **arguments, **image.env}
            command = ["env", "-i", f"--chdir={image.workdir}", *_pairs(given), "/bin/sh", "-c", step.rest]
            done(in_namespace(root, command, binds=lent.binds, read_only=False), f"RUN {step.rest}")
        elif step.word == "COPY":
            for source, target in copied(step.rest).items():
                place = root / image.workdir.lstrip("/") / target
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / source, place)
        elif step.word == "ENV":
            image.env |= assignments(step.rest, image.env)
        elif step.word == "ARG":
            arguments |= assignments(step.rest, image.env)
        elif step.word == "WORKDIR":
            image.workdir = step.rest
            (root / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        else:
            assert step.word in WRITTEN_INSTEAD, step
    return image


def start(image: Built, data: Path, *words: str, workdir: str = "/data", **variables: str) -> str:
    """Run ``words`` as an engine would: a user without a name or a home, nothing writable but /tmp and /data."""
    given = {**image.env, **variables}
    command = ["env", "-i", f"--chdir={workdir}", *_pairs(given), *words]
    line = in_namespace(image.root, command, binds={data: "/data"}, read_only=True, user=NOBODY)
    return done(line, shlex.join(words))


def _pairs(variables: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def remove(folder: Path) -> None:
    """Remove a folder below which nothing is mounted."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    assert not [each for each in mounted if each.startswith(str(folder))], f"still mounted below {folder}"
    shutil.rmtree(folder)


def why_not(folder: Path) -> str:
    """Say why no image can be built here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, for chroot and mounts"
    for program in ("debootstrap", "apt-get", "unshare", "chroot"):
        if not shutil.which(program):
            return f"needs {program} (apt-get install debootstrap, on Debian or Ubuntu)"
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        return f"needs {LEAST_FREE_BYTES / 1e9:.0f} GB below {folder} (--basetemp)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    return f"no namespaces here: {tried.stderr.decode().strip()}" if tried.returncode else ""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image that both begin with, made by debootstrap."""
    folder = tmp_path_factory.mktemp("bare")
    if reason := why_not(folder):
        pytest.skip(f"the images of docker/ are NOT tested: {reason}")
    bases = {default_build((DOCKER / name).read_text())[0] for name in ("Dockerfile", "Dockerfile.render")}
    assert len(bases) == 1
    match = re.fullmatch(r"debian:(\w+)-slim", bases.pop())
    assert match
    root = folder / "root"
    try:
        done(["debootstrap", "--variant=minbase", match[1], str(root), mirror(match[1])], "debootstrap")
        (root / "etc/apt/apt.conf.d/90-as-outside").write_text(apt_settings())
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        yield root
    finally:
        remove(folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that an image sees as /data and anybody may write."""
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def root(bare: Path) -> Iterator[Path]:
    folder = bare.parent / "image"
    try:
        yield folder
    finally:
        remove(folder)


def left_over(root: Path) -> list[str]:
    """Return what an image should not keep of its making."""
    unwanted = ["usr/bin/gcc", "usr/bin/g++", "usr/bin/git", "root/.cache", "var/lib/apt/lists/lock"]
    packages = [str(path.relative_to(root)) for path in root.glob("var/cache/apt/archives/*.deb")]
    return [name for name in unwanted if (root / name).exists()] + packages


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_training_image_trains_for_a_user_without_a_home(bare: Path, root: Path, data: Path) -> None:
    train_setup.dataset(data / "packed")
    image = build("Dockerfile", bare, root)
    assert left_over(root) == []
    start(image, data, "python3", "-c", "import torch, numba, submitit, xatlas, safetensors, get3d_cluster")
    launch = ("python3", f"{image.workdir}/launch.py")
    assert "torch" in start(image, data, *launch, "doctor", "--runs", "/data/runs")
    words = ("run", "train", "--config", "tiny_test", "--name", "t", "--runs", "/data/runs")
    settings = ("data.path=/data/packed", "num_images=160", "resources.workers_per_node=2")
    start(image, data, *launch, *words, *settings, **OWN)
    run = RunFolder(data / "runs" / "t")
    assert run.is_done()
    assert run.saved_step() >= 20


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_render_image_renders_and_starts_as_submitit_starts_it(
    bare: Path, root: Path, data: Path
) -> None:
    image = build("Dockerfile.render", bare, root)
    assert left_over(root) == []
    assert not list(root.glob("opt/get3d_cluster/.venv/lib/*/site-packages/torch"))
    launch = ("python3", f"{image.workdir}/launch.py", "run")
    models = ("shapes", "out=/data/models", "cars=1", "chairs=0", "--runs", "/data/runs")
    start(image, data, *launch, *models, **OWN)
    words = ("render", "--config", "render_demo", "--name", "r", "--runs", "/data/runs")
    paths = ("models=/data/models", "out=/data/images", f"blender={image.workdir}/.venv-render/bin/python")
    start(image, data, *launch, *words, *paths, "image.num_views=2", "image.samples=4", **OWN)
    pictures = sorted(data.glob("images/img/*/*/*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        alpha = np.asarray(Image.open(picture))[..., 3]
        assert alpha.min() == 0
        assert alpha.max() == 255

    code = "/data/runs/r/code"
    assert submitted(image, data, code) == f"{code}/get3d_cluster/__init__.py"  # the run's, not the image's


def submitted(image: Built, data: Path, code: str) -> object:
    """Return where a task that SLURM starts through submitit finds this package."""
    folder = data / "submitit"
    folder.mkdir()
    DelayedSubmission(pydoc.locate, "get3d_cluster.__file__").dump(folder / "7_submitted.pkl")
    folder.chmod(0o777)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SUBMITIT_EXECUTOR": "slurm"}
    task = ("python3", "-u", "-m", "submitit.core._submit", "/data/submitit")
    start(image, data, *task, PYTHONPATH=code, **slurm)
    outcome, value = pickle.loads((folder / "7_0_result.pkl").read_bytes())
    assert outcome == "success"
    return value


def test_the_steps_of_a_build_are_those_of_its_stage_and_the_stages_below() -> None:
    text = "ARG X=1\nFROM a AS one\nRUN x \\\n  # why\n  && y\nFROM b AS other\nRUN no\nFROM one\nENV Q=1\n"
    base, steps = default_build(text)
    assert base == "a"
    assert [(step.word, " ".join(step.rest.split())) for step in steps] == [
        ("RUN", "x && y"),
        ("ENV", "Q=1"),
    ]


def test_the_parts_of_the_installer_leave_no_requirement_out(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    record = tmp_path / "asked"
    fake = f"#!/bin/sh\nfor last; do :; done\ncase $last in /dev/stdin) cat >> {record};; esac\n"
    (tmp_path / "bin" / "python").write_text(fake)
    (tmp_path / "bin" / "python").chmod(0o755)
    subprocess.run(["sh", DOCKER / "install-train.sh", tmp_path], check=True)
    asked = [line for line in record.read_text().splitlines() if line and not line.startswith("#")]
    wanted = (REPOSITORY / "requirements.txt").read_text().splitlines()
    assert sorted(asked) == sorted(line for line in wanted if line and not line.startswith("#"))


@pytest.mark.parametrize("words", [(), ("folder", "tourch")])
def test_the_installer_refuses_what_it_does_not_know(words: tuple[str, ...], tmp_path: Path) -> None:
    asked = subprocess.run(
        ["sh", DOCKER / "install-train.sh", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 2
    assert "packages" in asked.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("torch_cuda", "toolkit", "refusal"),
    [("", "13.0", "without CUDA"), ("13.0", "", "not of CUDA 13.0"), ("13.0", "12.4", "not of CUDA 13.0")],
)
def test_nvdiffrast_is_not_built_against_another_cuda(
    torch_cuda: str, toolkit: str, refusal: str, tmp_path: Path
) -> None:
    asked = install_nvdiffrast(tmp_path, torch_cuda, toolkit)
    assert asked.returncode == 2
    assert refusal in asked.stderr
    assert "install" not in asked.stdout


def test_nvdiffrast_is_built_with_the_torch_that_is_there(tmp_path: Path) -> None:
    asked = install_nvdiffrast(tmp_path, "13.0", "13.0")
    assert asked.returncode == 0, asked.stderr
    assert "--no-build-isolation" in asked.stdout.splitlines()[-1]


def install_nvdiffrast(folder: Path, torch_cuda: str, toolkit: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a Python that knows torch's CUDA only, and an nvcc that knows its own version only."""
    scripts = {"bin/python": f'[ "$1" = -c ] && echo "{torch_cuda}" || echo "$@"'}
    if toolkit:
        scripts["cuda/bin/nvcc"] = f'echo "Cuda compilation tools, release {toolkit}, V{toolkit}.1"'
    for name, body in scripts.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        ["sh", DOCKER / "install-nvdiffrast.sh", folder],
        env={"PATH": f"{folder}/cuda/bin:/usr/bin:/bin", "CUDA_HOME": str(folder / "cuda")},
        capture_output=True,
        text=True,
        check=False,
    )
