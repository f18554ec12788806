"""config, logs, checkpoints, doctor and errors, as a person meets them."""

import io
import json
import re
from pathlib import Path

import pytest
import typer
from rich.console import Console

from get3d_cluster import config as configs
from get3d_cluster.cli import app as app_module
from get3d_cluster.cli import attached, doctor, key_table, logs
from get3d_cluster.cli.entry import run as command
from get3d_cluster.core.job import Cause, JobSpec, Outcome
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import SCHEDULERS
from get3d_cluster.schedulers.base import Standing
from tests.jobs_for_tests.fake_scheduler import FakeScheduler

JOB = "tests.jobs_for_tests.tiny"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeScheduler.reset()
    monkeypatch.setitem(SCHEDULERS, "local", "tests.jobs_for_tests.fake_scheduler:FakeScheduler")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "runs" / "a")
    made.path.mkdir(parents=True)
    made.write_spec(JobSpec(name="a", job=JOB, kind="steps", created="now"))
    made.config_path.write_text("{}\n")
    return made


def attempt(run: RunFolder, texts: list[str], cause: Cause | None = None) -> int:
    number = run.new_attempt()
    for rank, text in enumerate(texts):
        run.log_path(number, rank).write_bytes(text.encode())
    if cause:
        run.write_outcome(Outcome(attempt=number, cause=cause, exit_code=0, seconds=5, saved_step=7))
    return number


def test_every_key_is_listed_with_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["config", JOB, "nodes=4", "synset=02958343"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["seed"].strip().split(None, 3) == ["seed", "0", "int", "Decides every random number."]
    assert lines["resources.nodes"].split()[:4] == ["resources.nodes", "4", "1", "int"]
    assert "(*) Steps to do." in lines["num_steps"]
    assert command(["config", JOB, "--json", "nodes=4"]) == 0
    keys = {key["key"]: key for key in json.loads(capsys.readouterr().out)}
    assert (keys["resources.nodes"]["value"], keys["resources.nodes"]["default"]) == (4, 1)
    assert keys["synset"]["value"] == "03001627"


@pytest.mark.parametrize("width", [80, 119, 120, 160])
def test_keys_are_grouped_and_readable_at_any_width(width: int) -> None:
    keys = configs.keys(configs.find_job("pack").Config)
    screen = Console(width=width, file=io.StringIO(), highlight=False)
    for part in key_table.shown(keys, {"shard_mb": 32}, width):
        screen.print(part)
    lines = screen.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    assert all(key.path in text for key in keys)
    assert "Size at which a shard is closed; it is held in memory while it is packed." in text
    assert ("shard_mb=32 int, default 64" if width < 120 else "shard_mb 32 64 int") in text
    titles = [line.strip() for line in lines if line.startswith("resources") and "." not in line]
    assert titles == ["resources", "resources, for SLURM only"]


def test_every_key_for_slurm_only_is_one_of_the_resources() -> None:
    paths = {key.path for key in configs.keys(configs.find_job("pack").Config)}
    assert paths >= key_table.SLURM_KEYS


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (["sumbit"], "No such command 'sumbit'", "see: python launch.py --help"),
        (["submit"], "Missing argument", "see: python launch.py submit --help"),
        (["submit", JOB, "--frob"], "No such option: --frob", "see: python launch.py submit --help"),
        (["submit", "trian"], "there is no job trian", "jobs are: "),
        (
            ["submit", JOB, "sed=3"],
            "unknown key sed; the nearest is seed",
            f"all keys: python launch.py config {JOB}",
        ),
        (["submit", JOB, "seed"], "'seed' is no setting", "write key=value"),
        (["submit", JOB, "--config", "nothing"], "there is no configuration nothing", "give a path"),
        (["submit", JOB, "--cluster", "moon"], "scheduler='moon'", "choose one of"),
        (["logs", "nothing"], "there is no run nothing", "there are no runs"),
        (
            ["logs", "x", "--attempt", "one"],
            "Invalid value for '--attempt'",
            "see: python launch.py logs --help",
        ),
        (
            ["resume", "--cause", "boredom"],
            "Invalid value for '--cause'",
            "see: python launch.py resume --help",
        ),
    ],
)
def test_a_mistake_is_told_in_at_most_three_lines(
    words: list[str], first: str, second: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) <= 3
    assert lines[0].startswith(first)
    assert lines[-1].startswith(second)
    assert command([*words, "--debug"]) == 2
    assert first in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path, **__: object) -> None:
        raise ZeroDivisionError("our own")

    monkeypatch.setattr(app_module.doctor, "checks", broken)
    assert command(["doctor"]) == 1
    assert "ZeroDivisionError: our own" in capsys.readouterr().err


def test_every_verb_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--help"]) == 0
    top = capsys.readouterr().out
    verbs = [
        found.name or found.callback.__name__
        for found in app_module.app.registered_commands
        if found.callback
    ]
    assert len(verbs) >= 12
    for verb in verbs:
        assert f" {verb} " in top
        assert command([verb, "--help"]) == 0
        assert f"python launch.py {verb}" in " ".join(capsys.readouterr().out.split())


def printed_examples() -> list[str]:
    """Return every command that the help shows: those of the verbs, and the one below the list of verbs."""
    texts = [found.callback.__doc__ or "" for found in app_module.app.registered_commands if found.callback]
    epilog = re.sub(r"\. (?=[A-Z-])", "\n", f"{app_module.app.info.epilog}")
    whole = re.sub(r"\\\n\s*", "", "\n".join([*texts, epilog]))
    return re.findall(r"python launch\.py (.+?)\.?$", whole, re.MULTILINE)


@pytest.mark.parametrize("example", printed_examples())
def test_what_the_help_shows_can_be_typed(
    example: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEDULERS, "slurm", SCHEDULERS["local"])
    verb, *words = example.split()
    runs_dir = run.path.parent
    run.path.rename(runs_dir / "pack")
    with typer.main.get_command(app_module.app).commands[verb].make_context(verb, list(words)) as context:
        given = context.params
    if verb in {"submit", "run", "plan"}:
        assert command(["plan", *words, "--runs", str(runs_dir)]) == 0
    elif "job" in given:
        config = ["--config", given["config"]] if given.get("config") else []
        assert command(["config", given["job"], *(given.get("overrides") or ()), *config]) == 0


def test_settings_that_are_shown_as_examples_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["config", "train", "--config", "tiny_cpu", "seed"]) == 2
    hint = capsys.readouterr().err
    assert command(["config", "--help"]) == 0
    meant = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
    for text in (hint, meant[meant.index("Settings:") :]):
        shown = re.findall(r"\b[a-z_.]+=[-\w.]*\w", text)
        shown = [setting for setting in shown if setting != "key=value"]
        assert shown
        for setting in shown:
            assert command(["config", "train", "data.path=x", setting]) == 0


def test_a_job_without_its_data_asks_for_what_can_be_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["plan", "train", "--runs", str(tmp_path)]
    assert command(words) == 2
    assert capsys.readouterr().err.splitlines() == [
        "data.path must be given",
        "add data.path=VALUE; see: python launch.py config train",
    ]
    assert command([*words, "data.path=VALUE"]) == 0


def test_logs_are_stitched_over_attempts_and_ranks(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(run, ["one\n", "two\nthree"], Cause.PREEMPTED)
    attempt(run, ["four\n"])
    words = ["logs", "a", "--runs", str(run.path.parent)]
    assert command(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "=== attempt 1: preempted after 5 s, saved step 7 ===", "[rank 0] one", "[rank 1] two", "[rank 1] three",
        "=== attempt 2 ===", "four",
    ]  # fmt: skip
    assert command([*words, "--attempt", "1", "--rank", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["two", "three"]
    for wrong, hint in (
        (["--attempt", "3"], "attempts are 1 to 2"),
        (["--attempt", "2", "--rank", "1"], "ranks are: 0"),
        (["--rank", "7"], "ranks are: 0, 1: --rank R"),
        (["-f", "--rank", "7"], "ranks are: 0, 1: --rank R"),
        (["-f", "--attempt", "99"], "attempts are 1 to 2: --attempt N"),
    ):
        assert command([*words, *wrong]) == 2
        assert hint in capsys.readouterr().err


def test_following_hands_out_whole_lines_and_later_attempts(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.0)
    attempt(run, ["a\nhal"])
    script = iter(["more", "later", "end"])

    def is_over() -> bool:
        match next(script):
            case "later":
                with run.log_path(1, 0).open("a") as file:
                    file.write("f\n")
                attempt(run, ["b"])
            case "end":
                return True
        return False

    lines = list(logs.followed(run, logs.Selection(), is_over))
    assert lines == ["=== attempt 1 ===", "a", "half", "=== attempt 2 ===", "b"]


def test_a_damaged_checkpoint_is_listed_and_ends_with_its_code(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from get3d_cluster.runtime import checkpoint

    def listed(_: RunFolder, *, verify: bool, more: object) -> list[checkpoint.CheckpointInfo]:
        values = {"epoch": 1, "images": 2, "num_bytes": 1500, "t": 0.0, "digest": "ab" * 16}
        states = [(5, "damaged", "G.safetensors: digest differs"), (9, "ok", "")] if verify else []
        return [checkpoint.CheckpointInfo(step=s, state=state, problem=p, **values) for s, state, p in states]

    monkeypatch.setattr(checkpoint, "list_checkpoints", listed)
    words = ["checkpoints", "a", "--runs", str(run.path.parent)]
    assert command(words) == 0
    assert "no checkpoint yet" in capsys.readouterr().out
    assert command([*words, "--verify"]) == 6
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split()[:5] == ["5", "1", "2", "1.5", "kB"]
    assert "step 5" in err
    assert "9" not in err


def test_ldconfig_is_read_for_blenders_libraries() -> None:
    lines = [f"\t{library} (libc6,x86-64) => /lib/{library}" for library in doctor.BLENDER_LIBRARIES]
    assert doctor._libraries("\n".join(lines)).state == "ok"
    missing = doctor._libraries("\n".join(lines[:-1]))
    assert missing.state == "warn"
    assert missing.what_to_do.endswith("apt install --no-install-recommends libgl1")
    assert doctor._libraries("").state == "warn"


def test_doctor_fails_only_for_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 0)
    assert command(["doctor", "--runs", str(tmp_path / "runs"), "--json"]) == 0
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert found["python"]["state"] == "ok"
    assert all(check["what_to_do"] for check in found.values() if check["state"] != "ok")
    assert "matplotlib" not in found  # the report draws its own curves
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert command(["doctor", "--runs", str(tmp_path / "runs")]) == 2
    assert "pip install -r requirements.txt" in capsys.readouterr().out


def test_staying_with_a_run_suspends_on_the_first_interrupt(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = attempt(run, ["x"])
    FakeScheduler.standings["a"] = Standing(state="running")
    pauses = iter([None, KeyboardInterrupt, None, KeyboardInterrupt])

    def sleep(_: float) -> None:
        if (pause := next(pauses, None)) is not None:
            if FakeScheduler.calls:
                outcome = Outcome(
                    attempt=number, cause=Cause.SUSPENDED, exit_code=75, message="saved at step 7"
                )
                run.write_outcome(outcome)
            raise pause

    def stop(self: FakeScheduler, run: RunFolder, cause: Cause, *, now: bool = False) -> None:
        self.calls.append(("stop", run.name, str(cause), now))
        if now:
            self.standings.clear()

    monkeypatch.setattr(FakeScheduler, "stop", stop)
    monkeypatch.setattr(attached.time, "sleep", sleep)
    assert attached.stay(run, FakeScheduler()) == 75
    assert FakeScheduler.calls == [("stop", "a", "suspended", False), ("stop", "a", "suspended", True)]
    out = capsys.readouterr().out
    assert f"python launch.py resume {run.path}" in out
    assert "SUSPENDED" in out.splitlines()[-1]
