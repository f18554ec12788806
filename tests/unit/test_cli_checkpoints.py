"""What `checkpoints`, `status` and `report` tell of checkpoints: all tiers, damage, and where the bits part."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.cli.entry import run as command
from get3d_cluster.cli.facts import gather
from get3d_cluster.cli.status import row_of
from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.report.headline import details
from get3d_cluster.report.reading import read_run
from get3d_cluster.runtime.checkpoint import Checkpoints, more_tiers
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage

SPEC = JobSpec(name="a", job="tests.plain.job", kind="steps", created="2026-01-01T00:00:00+00:00")
PARTED = {
    "not_bitwise": [{"step": 4, "attempt": 2, "changed": {"threads": [1, 2], "MKL_CBWR": [None, "AVX2"]}}]
}


def a_state(step: int) -> dict[str, Any]:
    return {"net": {"w": torch.full((64,), float(step))}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "a")
    run.path.mkdir(parents=True)
    run.write_spec(SPEC)
    tiers = {"local": str(tmp_path / "fast"), "local_every_steps": 1, "url": f"memory://{tmp_path.name}"}
    lines = ["checkpoint:", *(f"  {key}: {json.dumps(value)}" for key, value in tiers.items())]
    run.config_path.write_text("\n".join(lines))
    config = CheckpointConfig(**tiers)
    for tier, storage in ({"run": open_storage(run.checkpoints_dir)} | more_tiers(config, SPEC, 1)).items():
        saver = Checkpoints(storage, CheckpointConfig(keep_last=9), lambda: None)
        for step in {"run": (3, 6), "local": (6, 8), "url": (6,)}[tier]:
            saver.save(
                step,
                a_state(step),
                {"attempt": 1, "epoch": 0, "images": step, **(PARTED if step > 4 else {})},
            )
    return run


def listed(run: RunFolder, *words: str) -> int:
    return command(["checkpoints", "a", "--runs", str(run.path.parent), *words])


def test_all_tiers_are_listed_and_verified(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(run, "--verify") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["STEP", "TIER"]
    assert [line[:2] for line in lines[1:]] == [
        ["3", "run"], ["6", "url"], ["6", "run"], ["6", "local"], ["8", "local"],
    ]  # fmt: skip
    assert "ok" in lines[1]
    assert all("ok not bitwise from step 4 on" in " ".join(line) for line in lines[2:])
    assert "bitwise" not in lines[1]
    assert listed(run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(item["tier"], item["not_bitwise_from"]) for item in found][:2] == [("run", None), ("url", 4)]


@pytest.mark.parametrize("tier", ["run", "local", "url"])
def test_damage_in_any_tier_is_found_and_ends_with_6(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], tier: str
) -> None:
    storage: Any = (
        open_storage(run.checkpoints_dir)
        if tier == "run"
        else more_tiers(
            CheckpointConfig(
                local=str(tmp_path / "fast"), local_every_steps=1, url=f"memory://{tmp_path.name}"
            ),
            SPEC,
            1,
        )[tier]
    )
    data = bytes(storage.read("step-000000006", "net.safetensors"))
    changed = data[:-1] + bytes([data[-1] ^ 1])
    if tier == "url":
        storage._fs.pipe_file(f"{storage._root}/step-000000006/net.safetensors", changed)
    else:
        (storage.root / "step-000000006" / "net.safetensors").write_bytes(changed)
    assert listed(run) == 0, "without --verify nobody reads it"
    capsys.readouterr()
    assert listed(run, "--verify") == 6
    assert "step 6" + ("" if tier == "run" else f" in {tier}") in capsys.readouterr().err


def test_a_tier_of_an_unknown_kind_is_a_wrong_configuration(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run.config_path.write_text("checkpoint:\n  url: nowhere-such://bucket\n")
    assert listed(run) == 2
    assert "nowhere-such" in capsys.readouterr().err


def test_a_tier_that_fails_while_it_is_read_is_told_and_hides_nothing(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from get3d_cluster.storage.remote import RemoteStorage

    monkeypatch.setattr(RemoteStorage, "list", lambda _: (_ for _ in ()).throw(TimeoutError("no route")))
    assert listed(run, "--verify") == 5
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["-", "3", "6", "6", "8"]
    assert "no route" in err
    assert "memory://" in err


def test_status_and_report_tell_where_the_bits_part(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_of(gather(run))
    assert row.not_bitwise_from == 4
    assert row.why.endswith("not bitwise from step 4 on")
    told = dict(details(read_run(run.path)))["not bitwise"]
    assert told == "from step 4 on: MKL_CBWR unset -> AVX2, threads 1 -> 2"
    run.done_path.write_text("{}")
    assert row_of(gather(run)).why == "not bitwise from step 4 on"


def test_a_manifest_that_is_damaged_tells_nothing(run: RunFolder) -> None:
    path = run.checkpoints_dir / "step-000000006" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"step": 4', b'"step": 5'))
    assert row_of(gather(run)).not_bitwise_from is None
    assert "not bitwise" not in dict(details(read_run(run.path)))
