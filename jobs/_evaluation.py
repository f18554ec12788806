"""Which checkpoints are measured, and in what order a worker goes through them."""

import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from get3d_cluster.errors import CheckpointError, UsageError
from get3d_cluster.evaluation.results import Evaluation, LeftOut, Metric, table_of
from get3d_cluster.runtime.checkpoint import list_checkpoints
from get3d_cluster.runtime.claims import Claims, Owner
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.runtime.session import Session
from get3d_cluster.storage.local import write_atomic
from jobs._array_files import as_bytes, key_of
from jobs._evaluation_setting import Setting
from jobs._measured import GoneError, Measured
from jobs._staged import Item, Stages

if TYPE_CHECKING:
    from jobs.evaluate import Config

WAIT_S = 0.2
LOOK_S = 5.0
"""Pause between looks for new checkpoints."""
COUNT_S = 2.0
COUNT_SHARE = 0.02
"""Part of a worker's time that goes into counting what others made."""
CHOICE = "choice"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published checkpoint."""

    step: int
    images: int
    digest: str


class Evaluator:
    """Finds checkpoints, goes through the stages of each, and publishes what came out."""

    def __init__(self, config: "Config", session: Session) -> None:
        self._config = config
        self._session = session
        self._training = RunFolder.open(config.run)
        self._out = (config.out or self._training.path / "evaluation").absolute()
        self._work_dir = self._out / "work"
        self._setting = Setting(config, self._training, self._work_dir, session.device)
        owner = Owner(process=ProcessId.mine(), attempt=session.attempt, name=str(session.rank))
        self._claims = Claims(self._work_dir / "claims", owner)
        self._sources_dir = session.run.path / "sources"
        self._current: tuple[Source, Stages] | None = None
        self._finished: dict[int, int] = {}
        self._made: set[Path] = set()
        self._count_at_s = float("-inf")
        self._look_at_s = float("-inf")
        self.is_done = False

    def step(self) -> None:
        """Make one file, or find the next checkpoint."""
        self._claims.beat()
        if self._current is None:
            self._find()
            return
        source, stages = self._current
        if self._has_result(source):
            self._finish(source)
            return
        try:
            stages.step()
        except FileNotFoundError:
            if not self._has_result(source):  # otherwise another worker was done, and cleared up
                raise
        except GoneError:
            self._forget(source)

    def progress(self) -> tuple[int, int, int]:
        """Return how many files of how many there are, and the images of the checkpoint at hand."""
        finished = sum(self._finished.values())
        if self._current is None:
            return finished, finished, 0
        source, stages = self._current
        now_s = time.monotonic()
        if now_s > self._count_at_s:
            self._made |= {
                item.path for item in stages.items if item.path not in self._made and item.is_made()
            }
            counted_s = time.monotonic()
            self._count_at_s = counted_s + max(COUNT_S, (counted_s - now_s) / COUNT_SHARE)
        return finished + len(self._made), finished + len(stages.items), source.images

    def close(self) -> None:
        """Give claims back."""
        self._claims.release_all()

    def _find(self) -> None:
        """Take the earliest checkpoint without a result; choose or look for one if there is none."""
        for source in self._sources():
            if source.step in self._finished:
                continue
            if not self._has_result(source):
                self._begin(source)
                return
            self._finished[source.step] = self._num_items(source)
        if self._config.every:
            self._look()
        elif self._finished:
            self.is_done = True
        else:
            self._choose()

    def _begin(self, source: Source) -> None:
        place = self._session.rank, self._session.world_size
        measured = self._measured(source)
        last = [Item(path=self._result_path(source), make=lambda: self._result(source, measured))]
        self._made = set()
        self._current = source, Stages([*measured.stages(), last], self._claims, self._out, *place)

    def _finish(self, source: Source) -> None:
        """Clear up what only this checkpoint needed: with its result there, nobody reads it any more."""
        self._finished[source.step] = self._num_items(source)
        self._current = None
        shutil.rmtree(self._setting.folder_of(source.step, source.digest), ignore_errors=True)

    def _forget(self, source: Source) -> None:
        """Pass over a checkpoint that the training let go before anybody read it."""
        if not self._config.every:
            raise CheckpointError(
                f"checkpoint of step={source.step} is gone: the training let it go before it was read",
                "start another run of evaluate, for the newest",
            )
        self._session.events.write("checkpoint-gone", step=source.step)
        self._source_path(source).unlink(missing_ok=True)
        self._current = None

    def _look(self) -> None:
        """Add what was published since; done when there is nothing new and nothing to wait for."""
        if time.monotonic() < self._look_at_s:
            time.sleep(WAIT_S)
            return
        self._look_at_s = time.monotonic() + LOOK_S
        ended = self._training.is_done()
        known = {source.step for source in self._sources()}
        new = [source for source in published(self._training) if source.step not in known]
        for source in new:
            write_json(self._source_path(source), asdict(source))
        if new or known - set(self._finished):
            self._look_at_s = float("-inf")
        elif not known and not self._config.follow:
            raise UsageError(
                f"{self._training.path} has no checkpoint yet", "let it train until its first, or follow=true"
            )
        else:
            self.is_done = ended or not self._config.follow

    def _choose(self) -> None:
        """Let one worker choose for all, and for later attempts."""
        name = f"{CHOICE}-{self._session.run.key}"
        if not self._claims.claim(name):
            time.sleep(WAIT_S)
            return
        if not self._sources():
            source = chosen_source(self._training, self._config.step)
            write_json(self._source_path(source), asdict(source))
        self._claims.release(name)

    def _result(self, source: Source, measured: Measured) -> bytes:
        """Return the content of the result's file, and tell people."""
        metrics, left_out = measured.numbers()
        evaluation = self._evaluation(source, metrics, left_out)
        numbers = {metric.name: metric.value for metric in metrics}
        self._session.events.write("evaluated", step=source.step, images=source.images, **numbers)
        table = table_of(evaluation)
        write_atomic(self._result_path(source).with_suffix(".txt"), table.encode())
        sys.stdout.write(table)
        sys.stdout.flush()
        return as_bytes(evaluation.as_json())

    def _num_items(self, source: Source) -> int:
        """Return how many files a checkpoint takes, as many whether it was done now or by an earlier attempt."""
        return sum(map(len, self._measured(source).stages())) + 1

    def _measured(self, source: Source) -> Measured:
        return Measured(self._setting, source.step, source.digest)

    def _sources(self) -> list[Source]:
        paths = sorted(self._sources_dir.glob("step-*.json"))
        return [Source(**read_json(path)) for path in paths]

    def _source_path(self, source: Source) -> Path:
        return self._sources_dir / f"step-{source.step:09d}.json"

    def _has_result(self, source: Source) -> bool:
        return self._result_path(source).exists()

    def _result_path(self, source: Source) -> Path:
        """Return the file that this checkpoint and these settings have for themselves."""
        return self._out / f"step-{source.step:09d}-{key_of(self._setting.key, source.digest)[:8]}.json"

    def _evaluation(self, source: Source, metrics: list[Metric], left_out: list[LeftOut]) -> Evaluation:
        return Evaluation(
            run=self._training.name,
            step=source.step,
            images=source.images,
            checkpoint=source.digest,
            seed=self._config.seed,
            settings=self._setting.decisive,
            settings_key=self._setting.key,
            metrics=metrics,
            left_out=left_out,
        )


def published(training: RunFolder) -> list[Source]:
    """Return the checkpoints of a training that are not damaged, oldest first."""
    found = [each for each in list_checkpoints(training) if each.state != "damaged"]
    return [Source(step=each.step, images=each.images, digest=each.digest) for each in found]


def chosen_source(training: RunFolder, step: int) -> Source:
    """Return the checkpoint of ``step``, or the newest if 0. Raises: UsageError if there is none."""
    found = published(training)
    wanted = [each for each in found if step in (0, each.step)]
    if not wanted:
        raise UsageError(
            f"{training.path} has no checkpoint {f'of step={step}' if step else 'yet'}",
            f"it has {[each.step for each in found]}" if found else "let it train until its first checkpoint",
        )
    return wanted[-1]
