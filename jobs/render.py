"""Render models to images on any number of workers, which may come and go at any time."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from get3d_cluster.core.job import Position, Resources, RetryConfig
from get3d_cluster.runtime.claims import Claims, Owner
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.session import ItemWork, Session
from preprocess.blender import Blender, check_program
from preprocess.images import ImageConfig, Settings, Tree, key
from preprocess.listing import Listings
from preprocess.lists import read_lists
from preprocess.quality import Gates
from preprocess.render import Ended, Machine, Renderer
from preprocess.shapenet import ModelFile, find_models
from preprocess.summary import is_summed_up, sum_up

KIND = "items"
BLENDER = Path(__file__).parents[1] / ".venv-render" / "bin" / "python"
"""Of this project, wherever the command is typed; a run keeps the path: its workers compute in a copy of the code."""
WAIT_S = 0.2
"""Pause while other workers hold what is left."""
SEARCH_S = 0.5
"""Longest search for a free model in one step: notices are looked at between steps."""
COUNT_S = 2.0
"""Age at which the number of ended models is counted anew; more if counting takes long."""
COUNT_SHARE = 0.02
"""Part of a worker's time that goes into counting."""
SUMMARY = "summary"
"""Claimed by the worker that sums up; no model's claim is called so, since those have a category."""
GRACE_SHARE = 0.5
"""Part of the time between notice and kill in which a running view may still end."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Render the models of a ShapeNet-like folder."""

    models: Path
    """Folder of the models: <synset>/<model>/model.obj, or another layout of docs/rendering.md."""
    out: Path
    """Folder of the images: img/<synset>/<model>/000.png and camera/<synset>/<model>/."""
    synsets: tuple[str, ...] = ()
    """Categories to render, such as ["02958343"]; empty means all there are."""
    lists: tuple[Path, ...] = ()
    """Files that say which models to render: one id a line, <synset>/<id>, or ShapeNet's all.csv; empty means all."""
    splits: tuple[str, ...] = ()
    """Rows of all.csv to render, such as ["train", "val"]; empty means all."""
    limit: int = 0
    """Render the first so many models of each category only; 0 means all."""
    retry_failed: int = field(default=0, metadata={"changeable": True})
    """How often a quarantined model gets another chance: 1 tries all of them once more, 2 those that failed again."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """What decides the pixels."""
    gates: Gates = field(default_factory=Gates)
    """What a view must satisfy."""
    blender: Path = field(default=BLENDER, metadata={"changeable": True})
    """A Python that has bpy (made by `make setup`), or the program of an installed Blender 4.2 or later."""
    device: Literal["auto", "cpu", "cuda", "optix"] = "auto"
    """What Cycles computes with; auto is OptiX or CUDA if resources.gpus_per_worker is set, else the CPU. Images of CPU
    and GPU differ in bits and never share an output folder."""
    view_timeout_s: float = field(default=300.0, metadata={"changeable": True})
    """Blender is killed when loading a model, or rendering a view, takes longer."""
    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler; Blender gets ``cpus_per_worker`` threads."""
    retry: RetryConfig = field(default_factory=RetryConfig)
    """How often the run comes back by itself."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must not be negative")
        if self.view_timeout_s <= 0:
            raise ValueError(f"view_timeout_s={self.view_timeout_s} must be positive")
        if self.retry_failed < 0:
            raise ValueError(f"retry_failed={self.retry_failed} must not be negative")


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker. Raises: UsageError if there is nothing to render, or ``out`` has other images."""
    program = config.blender
    check_program(program)
    tree = Tree(config.out, config.image)
    wanted = read_lists(config.lists, config.splits)
    found = find_models(config.models, config.synsets, wanted, Listings(tree.listing))
    tree.open()
    if session.rank == 0 or not tree.has_listed_left_out():  # of an array, element 0 may come last
        tree.list_left_out(found.left_out)
    log = session.run.attempt_dir(session.attempt) / f"blender{session.rank:04d}.log"
    renderer = Renderer(
        tree,
        Blender(program.absolute(), log),
        gates=config.gates,
        machine=machine_of(config, session.device),
    )
    return RenderWork(limited(found.models, config.limit), renderer, session, config.retry_failed)


def _judged(facts: Settings) -> Settings:
    """Return what the gates saw of a finished model: how much of its views it covers, and what was odd about it."""
    covered = [view["coverage"] for view in facts.get("views", [])]
    odd = {name: facts[name] for name in ("missing", "warnings") if facts.get(name)}
    return odd | ({"coverage": [round(min(covered), 4), round(max(covered), 4)]} if covered else {})


def machine_of(config: Config, device: str) -> Machine:
    """Return what Blender may use: ``device`` is what the worker was given, "cpu" or "cuda:1"."""
    has_gpus, number = device.startswith("cuda"), int(device.partition(":")[2] or 0)
    wanted = config.device
    gpus = tuple(range(number, number + config.resources.gpus_per_worker)) if has_gpus else None
    return Machine(
        threads=config.resources.cpus_per_worker,
        timeout_s=config.view_timeout_s,
        device=wanted if wanted != "auto" else "gpu" if has_gpus else "cpu",
        gpus=None if wanted == "cpu" else gpus,
    )


def limited(models: Sequence[ModelFile], limit: int) -> list[ModelFile]:
    """Return the first ``limit`` models of each category; 0 means all."""
    kept = []
    for _, group in itertools.groupby(models, key=lambda model: model.synset):
        kept += list(group)[: limit or None]
    return kept


class RenderWork:
    """One worker's part: claims a model, renders it view by view, publishes it, takes the next."""

    def __init__(
        self, items: Sequence[ModelFile], renderer: Renderer, session: Session, retry_failed: int = 0
    ) -> None:
        self._items = items
        self._retry_failed = retry_failed
        self._renderer = renderer
        self._tree = renderer.tree
        self._session = session
        owner = Owner(process=ProcessId.mine(), attempt=session.attempt, name=str(session.rank))
        self._claims = Claims(self._tree.claims, owner)
        renderer.blender.keep_waiting = self._keep_waiting
        first = session.rank * len(items) // session.world_size
        self._left = [*items[first:], *items[:first]]
        self._retried = [
            item for item in items if retry_failed and 0 < self._tree.times_given_up(item) <= retry_failed
        ]
        self._next = 0
        self._current: ModelFile | None = None
        self._begun_s = 0.0
        self._count_at_s = float("-inf")
        self._num_ended = 0
        self._num_given_up = 0

    def position(self) -> Position:
        is_news = (
            self._num_ended < len(self._items) if not self._left else time.monotonic() > self._count_at_s
        )
        if is_news:
            begun_s = time.monotonic()
            self._count()
            counted_s = time.monotonic()
            self._count_at_s = counted_s + max(COUNT_S, (counted_s - begun_s) / COUNT_SHARE)
        if not self._left:
            self._num_ended = len(self._items)
        return Position(
            step=self._num_ended,
            num_steps=len(self._items),
            images=(self._num_ended - self._num_given_up) * self._tree.image.num_views,
            given_up=self._num_given_up,
        )

    def is_done(self) -> bool:
        return not self._left and is_summed_up(self._tree)

    def step(self) -> None:
        """Do one look, one view or one publication; after the last, sum up."""
        self._claims.beat()
        if not self._left:
            self._sum_up()
            return
        if self._current is not None and not self._claims.holds(key(self._current)):
            self._put_down()
        if self._current is None:
            self._take()
        elif ended := self._renderer.step(self._current):
            self._end(self._current, ended)

    def close(self) -> None:
        self._renderer.close()
        self._claims.release_all()

    def _take(self) -> None:
        """Claim the next free model; after a round without one, wait a little."""
        deadline_s = time.monotonic() + SEARCH_S
        while self._left and time.monotonic() < deadline_s:
            if self._next >= len(self._left):
                self._next = 0
                time.sleep(WAIT_S)
                return
            item = self._left[self._next]
            if self._is_ended(item):
                del self._left[self._next]
            elif self._claims.claim(key(item)):
                self._begin(item)
                return
            else:
                self._next += 1

    def _begin(self, item: ModelFile) -> None:
        self._current, self._begun_s = item, time.monotonic()
        if self._is_ended(item):  # by another worker, between our look and our claim
            self._put_down()
        else:
            self._tree.take_back(item)

    def _end(self, item: ModelFile, ended: Ended) -> None:
        self._left.remove(item)
        self._put_down()
        row = {"synset": item.synset, "model": item.model, "ended": str(ended)}
        is_given_up = ended is Ended.QUARANTINED
        why = self._renderer.last if is_given_up else _judged(self._tree.facts(item))
        place = {"attempt": self._session.attempt, "rank": self._session.rank}
        seconds = round(time.monotonic() - self._begun_s, 3)
        self._tree.log({**row, **why, **place, "seconds": seconds})
        if is_given_up:
            self._session.events.write("quarantine", **{**row, **why})

    def _sum_up(self) -> None:
        """Write the summary, or wait for the worker that does."""
        if self._claims.claim(SUMMARY):
            if not is_summed_up(self._tree):
                sum_up(self._tree, self._items)
            self._claims.release(SUMMARY)
        else:
            time.sleep(WAIT_S)

    def _put_down(self) -> None:
        assert self._current is not None
        self._claims.release(key(self._current))
        self._current = None

    def _is_ended(self, item: ModelFile) -> bool:
        return self._tree.times_given_up(item) > self._retry_failed or self._tree.is_done(item)

    def _count(self) -> None:
        synsets = {item.synset for item in self._items}
        given_up = {synset: self._tree.given_up(synset) for synset in synsets}
        ended = {synset: self._tree.published(synset) | given_up[synset] for synset in synsets}
        self._retried = [item for item in self._retried if not self._is_ended(item)]
        self._num_ended = sum(item.model in ended[item.synset] for item in self._items) - len(self._retried)
        self._num_given_up = max(
            0, sum(item.model in given_up[item.synset] for item in self._items) - len(self._retried)
        )

    def _keep_waiting(self) -> bool:
        self._claims.beat()
        notices = self._session.notices
        allowed_s = 0.0 if notices.is_urgent else GRACE_SHARE * self._session.resources.grace_s
        return notices.first_s is None or time.monotonic() - notices.first_s < allowed_s
