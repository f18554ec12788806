"""The README's commands, as they stand there, in a copy of the project. The clone and the make targets apart."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from get3d_cluster.cli.snapshot import REPOSITORY
from get3d_cluster.runtime.env import child_environment

ELSEWHERE = ("git clone", "make demo", "make test")
WAIT_S = 240


def commands() -> list[str]:
    text = (REPOSITORY / "README.md").read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if not language]  # those in sh are for a cluster
    return [line for block in blocks for line in block.splitlines() if not line.startswith(ELSEWHERE)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that git knows or would take, beside the environments."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / "project" / name)
    for name in (".venv", ".venv-render"):
        (tmp_path / "project" / name).symlink_to(REPOSITORY / name)
    return tmp_path / "project"


def wait_until_settled(project: Path) -> None:
    """Wait until nothing is queued, starting or running: a reader would look at `status` before going on."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        rows = json.loads(run(project, ".venv/bin/python launch.py status --json").stdout)
        if not any(row["state"] in ("PENDING", "RUNNING", "BACKING-OFF") for row in rows):
            return
        time.sleep(1)
    raise AssertionError(rows)


def run(project: Path, command: str) -> subprocess.CompletedProcess[str]:
    variables = {"GET3D_QUEUE": str(project.parent / "queue"), "GET3D_SLOTS": "2", "COLUMNS": "150"}
    return subprocess.run(
        command.split(),
        cwd=project,
        env=child_environment(variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.blender
@pytest.mark.timeout(600)
def test_every_command_of_the_readme_works(project: Path) -> None:
    found = commands()
    assert len(found) >= 12
    assert all(
        command.startswith((".venv/bin/python launch.py", ".venv/bin/python docs/")) for command in found
    )
    for command in found:
        if "generate" in command or "simulate" in command:
            wait_until_settled(project)
        done = run(project, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert len(list((project / "runs" / "mine" / "meshes").glob("*.glb"))) == 2
    assert (project / "runs" / "mine" / "DONE").is_file()
    assert (project / "runs" / "mine" / "report.html").is_file()
    outcomes = [
        json.loads(path.read_text()) for path in sorted(project.glob("runs/mine/attempts/*/outcome.json"))
    ]
    assert [outcome["world_size"] for outcome in outcomes] == [2, 1]
    assert outcomes[0]["cause"] == "suspended"
