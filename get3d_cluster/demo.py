"""The whole way on one machine, as a user would go it: each step is a command of ``launch.py``, printed first.

Models, Blender renders (killed once, on purpose), packing, training on two workers (suspended once, at a random step),
the proof that a stop changes no bit, meshes, report. What it claims at the end, it has looked up in the run folders.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from get3d_cluster.errors import DifferenceError, ExitCode, Get3dError, UsageError
from get3d_cluster.runtime.env import child_environment
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder

POLL_S = 0.1
KILL_AT = 0.4
"""Share of the models after which the renderers are killed."""
CHECKED_MODELS = 2
"""Models that are rendered again without a break, those under way at the kill first."""
CHAIR = "03001627"
MARK = ".get3d-demo"
STRETCH_STEPS = 40
BATCH = 8
"""Images of a step of `tiny_cpu`."""
TABLE_STYLE = "bold cyan"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demo."""

    folder: Path = Path("demo")
    cars: int = 48
    chairs: int = 6
    num_images: int = 16_000
    """Images the training sees: plainly cars, most in one paint. Some five minutes on two idle cores."""
    shapes: int = 8
    """Meshes written at the end."""
    seed: int = 0


def run_demo(config: DemoConfig, console: Console) -> None:
    """Go the whole way below ``config.folder``, which is emptied first.

    Raises: Get3dError at the first step that fails; DifferenceError if a promise is not kept.
    """
    _Demo(config, console).run()


class _Demo:
    """The steps, and what they hand on."""

    def __init__(self, config: DemoConfig, console: Console) -> None:
        self._config = config
        self._console = console
        self._folder = config.folder
        self._runs = config.folder / "runs"
        self._choose = random.Random(config.seed)  # noqa: S311  reproducible by its seed
        self._begun_s = time.monotonic()

    def run(self) -> None:
        self._start_afresh()
        self._models()
        self._render()
        self._check_pixels()
        self._second_class()
        self._pack()
        self._train()
        verdict = self._prove()
        self._meshes()
        self._end(verdict)

    def _start_afresh(self) -> None:
        """Empty the folder, if an earlier demo made it. Raises: UsageError if it holds anything else."""
        mark = self._folder / MARK
        if self._folder.exists() and any(self._folder.iterdir()) and not mark.exists():
            raise UsageError(
                f"--folder {self._folder} is not empty and no demo made it", "name another folder"
            )
        for spec in self._runs.glob("*/spec.json"):
            self._launch("cancel", str(spec.parent), "--now", quiet=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        mark.write_text("Made by `launch.py demo`, which empties this folder when it begins.\n")

    def _models(self) -> None:
        self._title("1. Models: procedural cars and chairs in ShapeNet layout")
        counts = [f"cars={self._config.cars}", f"chairs={self._config.chairs}"]
        self._launch("run", "shapes", *self._named("models"), f"out={self._folder / 'models'}", *counts)

    def _render(self) -> None:
        self._title("2. Images: Blender, two workers; all of them are killed once in the middle")
        images = self._folder / "images"
        self._launch(
            "submit",
            "render",
            *self._render_settings(self._folder / "models", images),
            *self._named("render"),
        )
        run = self._open("render")
        with self._following(run, "models rendered"):
            self._wait(run, lambda: _fraction(run) >= KILL_AT)
            self._under_way = _under_way(images)
            kept = _digests(images)
            victims = _kill_workers(run)
        self._say(
            f"killed {victims} processes with kill -9; {len(kept)} models were done, {len(self._under_way)} under way"
        )
        with self._following(run, "models rendered"):
            self._wait(run, run.is_done)
        after = _digests(images)
        if any(after.get(key) != digest for key, digest in kept.items()):
            raise DifferenceError("a model rendered before the kill changed after it", f"compare {images}")
        self._say(f"came back by itself: {len(after)} models done, none of the first {len(kept)} again")

    def _check_pixels(self) -> None:
        """Render the interrupted models once more without a break, and compare pixels."""
        models, images = self._folder / "unbroken" / "models", self._folder / "unbroken" / "images"
        done = sorted(_digests(self._folder / "images"))
        chosen = list(dict.fromkeys([*self._under_way, *done]))[:CHECKED_MODELS]
        for key in chosen:
            shutil.copytree(self._folder / "models" / key, models / key)
        self._launch("run", "render", *self._render_settings(models, images), *self._named("unbroken"))
        ours = _digests(self._folder / "images")
        for key, digest in _digests(images).items():
            if ours[key] != digest:
                raise DifferenceError(
                    f"the pixels of {key} differ from an unbroken render", f"compare {images}"
                )
        self._say(f"rendered {' and '.join(chosen)} again without a break: every pixel is the same")

    def _second_class(self) -> None:
        """Render the chairs: another class, another size, another folder."""
        out = self._folder / "chairs"
        settings = [
            *self._render_settings(self._folder / "models", out),
            f"synsets=[{CHAIR}]",
            "image.longest_side=0.7",
        ]
        self._launch("run", "render", *settings, *self._named("render_chairs"))
        self._say(f"{len(_digests(out))} chairs, a second class, in {out}")

    def _pack(self) -> None:
        self._title("3. Dataset: images and cameras in tar shards with an index")
        paths = [f"images={self._folder / 'images'}", f"out={self._folder / 'packed'}"]
        self._launch("run", "pack", *self._named("pack"), *paths)

    def _train(self) -> None:
        self._title("4. Training on two workers, suspended at a random step and resumed")
        self._launch("submit", "train", *self._train_settings(self._config.num_images), *self._named("train"))
        run = self._open("train")
        steps = self._train_steps()
        target = self._choose.randrange(steps // 4, 3 * steps // 4)
        with self._following(run, "steps"):
            self._wait(run, lambda: _progress(run).get("step", 0) >= target)
            self._launch("suspend", "train", "--runs", str(self._runs), quiet=True)
            self._wait(run, lambda: run.outcome(1) is not None)
        before = _event(run, "suspend")
        self._say(f"suspended at epoch {self._epoch(before)}, step {before['step']} (pid {before['pid']})")
        self._launch("resume", "train", "--runs", str(self._runs))
        with self._following(run, "steps"):
            self._wait(run, run.is_done)
        after = _event(run, "resume")
        if (after["step"], after["digest"]) != (before["step"], before["digest"]):
            raise DifferenceError(
                "the training did not resume where it was suspended", f"see {run.events_path}"
            )
        self._say(
            f"resumed at epoch {after['epoch']}, step {after['step']} (pid {after['pid']}): 0 steps lost"
        )

    def _prove(self) -> dict[str, Any]:
        self._title("5. Proof: a short stretch once through, and once interrupted")
        quiet = [
            "watch.preview_every_s=0",
            "watch.measure_every_s=0",
            "watch.log_every_steps=1",
            "checkpoint.every_s=0",
        ]
        text = self._launch(
            "simulate", "train", *self._train_settings(STRETCH_STEPS * BATCH), *quiet, "--stops", "1", "--worlds", "2",
            "--seed", str(self._config.seed), "--folder", str(self._folder / "proof"), "--json", quiet=True,
        )  # fmt: skip
        verdict: dict[str, Any] = json.loads(text)
        self._say(
            f"uninterrupted {verdict['digest'][:16]}  interrupted {verdict['other_digest'][:16]}: equal"
        )
        return verdict

    def _meshes(self) -> None:
        self._title("6. Meshes: GLB, OBJ with MTL and PNG, contact sheet, turntables")
        source = [f"run={self._runs / 'train'}", f"num_shapes={self._config.shapes}"]
        self._launch("run", "generate", *self._named("generate"), *source)

    def _end(self, verdict: dict[str, Any]) -> None:
        run = self._open("train")
        self._launch("report", "train", "--runs", str(self._runs), quiet=True)
        table = Table(title="What happened", title_style=TABLE_STYLE, show_header=False)
        for name, value in self._facts(run, verdict):
            table.add_row(name, value)
        self._console.print(table)
        for name, path in self._places(run):
            self._console.print(f"  {name:<14} {path}")

    def _facts(self, run: RunFolder, verdict: dict[str, Any]) -> Iterator[tuple[str, str]]:
        outcomes = run.outcomes()
        done = json.loads(run.done_path.read_text())
        row = read_rows(run.metrics_path)[-1]
        yield "steps", str(done["step"])
        yield "images", str(row["images"])
        yield "attempts", str(len(run.attempts()))
        stops = sum(outcome.exit_code == ExitCode.SUSPENDED for outcome in outcomes)
        yield "preemptions", f"{stops} (by launch.py suspend, at a random step)"
        yield "steps lost", str(sum(outcome.end_step - outcome.saved_step for outcome in outcomes))
        yield "state digest", done["digest"]
        yield "proof digests", f"{verdict['digest'][:16]} = {verdict['other_digest'][:16]}"
        yield "images/s", f"{row['images'] / row['seconds']:.1f}"
        measured = [row for row in read_rows(run.metrics_path) if "frechet_pooled" in row]
        if measured:
            yield (
                "Frechet, pooled",
                f"{measured[0]['frechet_pooled']:.2f} -> {measured[-1]['frechet_pooled']:.2f}",
            )
            yield (
                "silhouette IoU",
                f"{measured[0]['silhouette_iou']:.3f} -> {measured[-1]['silhouette_iou']:.3f}",
            )
        yield "time", f"{(time.monotonic() - self._begun_s) / 60:.1f} min"

    def _places(self, run: RunFolder) -> Iterator[tuple[str, Path]]:
        yield "report", run.report_path
        yield "meshes", run.meshes_dir
        yield "samples", run.samples_dir
        yield "images", self._folder / "images"
        yield "events", run.events_path

    def _named(self, name: str) -> list[str]:
        return ["--name", name, "--runs", str(self._runs)]

    def _render_settings(self, models: Path, images: Path) -> list[str]:
        return ["--config", "render_demo", f"models={models}", f"out={images}"]

    def _train_settings(self, num_images: int) -> list[str]:
        sizes = [f"num_images={num_images}", f"seed={self._config.seed}"]
        return ["--config", "tiny_cpu", f"data.path={self._folder / 'packed'}", *sizes]

    def _train_steps(self) -> int:
        return self._config.num_images // BATCH

    def _epoch(self, event: dict[str, Any]) -> int:
        saves = [row for row in read_rows(self._open("train").events_path) if row["event"] == "save"]
        return next((row["epoch"] for row in saves if row["step"] == event["step"]), 0)

    def _open(self, name: str) -> RunFolder:
        return RunFolder.open(self._runs / name)

    def _launch(self, *arguments: str, quiet: bool = False) -> str:
        """Run a command of launch.py as a user would; return what it printed."""
        command = [sys.executable, "launch.py", *arguments]
        self._console.print(f"[dim]$ python {' '.join(command[1:])}[/dim]", soft_wrap=True, highlight=False)
        with self._waiting(quiet=quiet):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                env=child_environment({"COLUMNS": "160"}),
            )
        if done.returncode:
            raise Get3dError(
                f"python {' '.join(command[1:3])} ended with {done.returncode}: {done.stderr.strip()[-600:]}",
                f"look at the logs: python launch.py logs NAME --runs {self._runs}",
            )
        return done.stdout

    @contextlib.contextmanager
    def _waiting(self, *, quiet: bool) -> Iterator[None]:
        if quiet or not self._console.is_terminal:
            yield
            return
        with self._console.status("working"):
            yield

    @contextlib.contextmanager
    def _following(self, run: RunFolder, unit: str) -> Iterator[None]:
        """Show the progress of ``run`` while the body waits for it."""
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console) as bar:
            self._bar, self._task = bar, bar.add_task(unit, total=None)
            try:
                yield
            finally:
                self._show(run)

    def _wait(self, run: RunFolder, is_reached: Any) -> None:
        while not is_reached():
            self._show(run)
            _fail_if_stuck(run)
            time.sleep(POLL_S)

    def _show(self, run: RunFolder) -> None:
        progress = _progress(run)
        if progress:
            self._bar.update(self._task, total=progress["num_steps"], completed=progress["step"])

    def _title(self, text: str) -> None:
        self._console.rule(f"[bold]{text}", align="left")

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False)


def _progress(run: RunFolder) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(run.progress_path.read_text())
    except (OSError, ValueError):
        return {}
    return data


def _fraction(run: RunFolder) -> float:
    progress = _progress(run)
    return progress["step"] / progress["num_steps"] if progress else 0.0


def _fail_if_stuck(run: RunFolder) -> None:
    """Raise if the run has ended otherwise than it should."""
    held = run.path / "hold.json"
    outcomes = run.outcomes()
    if held.exists() or (outcomes and outcomes[-1].exit_code in (2, 3, 4, 77, 93)):
        why = outcomes[-1].message if outcomes else held.read_text()
        raise Get3dError(f"{run.name} stopped: {why}", f"see {run.attempts_dir}")


def _event(run: RunFolder, name: str) -> dict[str, Any]:
    return next(row for row in read_rows(run.events_path) if row["event"] == name)


def _digests(images: Path) -> dict[str, str]:
    """Return for each finished model a text that changes with any pixel of any view."""
    found = {}
    for path in sorted(images.glob("camera/*/*/object.json")):
        model = "/".join(path.parts[-3:-1])
        if not (images / "img" / model).is_dir():
            continue
        views = json.loads(path.read_text())["views"]
        found[model] = " ".join(view["pixels_sha256"] for view in views)
    return found


def _under_way(images: Path) -> list[str]:
    """Return the models that have some views but are not finished."""
    folders = [path for path in images.glob(".staging/*/*/*") if path.is_dir() and any(path.glob("*.png"))]
    return sorted("/".join(path.parts[-2:]) for path in folders if not path.parts[-2].startswith("."))


def _kill_workers(run: RunFolder) -> int:
    """Kill every worker of ``run`` without warning, found by its command line; return how many."""
    wanted = ["get3d_cluster.worker", str(run.path)]
    victims = [
        int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _runs(path, wanted)
    ]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(victims)


def _runs(process: Path, wanted: Sequence[str]) -> bool:
    try:
        arguments = (process / "cmdline").read_text().split("\0")
    except OSError:
        return False
    return all(word in arguments for word in wanted)
