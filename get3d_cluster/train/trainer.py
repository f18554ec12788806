"""The training of GET3D as a job of kind ``steps``: bit for bit the same on any number of workers, and when resumed.

A step: the generator's phase; the discriminator's; every ``r1_interval`` steps the R1 phase; the running average. Each
phase is computed micro-shard by micro-shard, its gradients and numbers summed along the fixed tree of ``dist.tree``.

What it refuses to be: nothing but ``state()`` and the configuration decides the steps to come. Clocks decide only when
something is shown.
"""

import copy
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from get3d_cluster.core.job import Position
from get3d_cluster.core.philox import Phase
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.data.order import epoch_of, sample_at
from get3d_cluster.dist.network import Network
from get3d_cluster.dist.tree import GradientReducer, PhasePlan
from get3d_cluster.errors import Get3dError, HeldError
from get3d_cluster.runtime.checkpoint import load_optimizer, optimizer_state
from get3d_cluster.runtime.checkpoint_tree import shape_differences
from get3d_cluster.runtime.session import Ballot, Session
from get3d_cluster.train import ema, messages, numerics
from get3d_cluster.train.adam import Adam
from get3d_cluster.train.augment import Augmentation, Strength, augmentation
from get3d_cluster.train.classes import labels_of
from get3d_cluster.train.config import TrainerConfig
from get3d_cluster.train.counters import Counters
from get3d_cluster.train.finite import trouble_of
from get3d_cluster.train.first_weights import first_weights
from get3d_cluster.train.fit import check_fit
from get3d_cluster.train.identity import check_data, data_identity
from get3d_cluster.train.networks import networks, optimizers, set_rates
from get3d_cluster.train.norms import Row, gradient_norms, measured, parts_of
from get3d_cluster.train.phases import (
    DISCRIMINATOR_NUMBERS,
    DISCRIMINATOR_STREAMS,
    GENERATOR_NUMBERS,
    GENERATOR_STREAMS,
    R1_NUMBERS,
    Fakes,
    Judged,
    Reals,
    Shard,
    discriminator_numbers,
    generate,
    generator_shard,
    judge_both,
    judge_fakes,
    judge_reals,
    losses_of,
    named,
    r1_shard,
)
from get3d_cluster.train.previews import Watch
from get3d_cluster.train.replicas import Replicas
from get3d_cluster.train.rows import Numbers, Rows

GENERATOR_PARTS = ("generator", "adam_generator")
DISCRIMINATOR_PARTS = ("discriminator", "adam_discriminator")
AVERAGE_PART = "generator_ema"


class Get3dTrainer:
    """Both networks, both optimizers, the running average and the counters of one run."""

    def __init__(
        self,
        config: TrainerConfig,
        session: Session,
        dataset: ImageDataset,
        watches: Sequence[Watch] = (),
        mirrors: Sequence[Watch] = (),
    ) -> None:
        """``mirrors`` look once the row of a step is written; both are rank 0's."""
        numerics.fix(session.device, tf32=config.precision.tf32)
        self.config = config
        self._loss = config.loss_with_scaled_gammas
        self._session = session
        self._dataset = dataset
        self._watches = watches if session.rank == 0 else ()
        self._mirrors = mirrors if session.rank == 0 else ()
        self._labels = labels_of(dataset.samples, config.generator.classes)
        self.generator, self.discriminator = networks(config, session.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(requires_grad=False)
        dtype = torch.bfloat16 if config.precision.amp == "bf16" else None
        self.generator.dtype = dtype  # of this one alone: people see the average as the jobs show it
        self._judge = functools.partial(self.discriminator, dtype=dtype)
        self._adam_g, self._adam_d = optimizers(config, self.generator, self.discriminator)
        self._network = Network(session.group, config.reduction, session.device)
        styles = 2 * config.generator.latent_channels
        self._reduce_g = self._reducer("generator", self.generator, len(GENERATOR_NUMBERS) + styles)
        self._reduce_d = self._reducer(
            "discriminator",
            self.discriminator,
            len(DISCRIMINATOR_NUMBERS) + styles + Ballot.SIZE,
            backwards=1 if config.batch.judge_together else 2,
        )
        self._reduce_r1 = self._reducer("r1", self.discriminator, len(R1_NUMBERS))
        if session.rank == 0 and session.world_size > 1:
            phases = [each.describe() for each in (self._reduce_g, self._reduce_d, self._reduce_r1)]
            session.events.write("reduction", **self._network.describe(), phases=phases)
        self._average_config = ema.without_ramp_up(config.average) if config.init_from else config.average
        self.counters = Counters()
        self._troubles: list[str] = []
        """Of the last step."""
        self._strength = Strength(p=config.augment.p)
        self._replicas = Replicas(session.group, config.reduction.replica_check_every)
        self._first_reals: Judged | None = None
        """The real half of this worker's first shard of the discriminator's phase, if that is done already."""
        self._rows = Rows(session, config.batch.size)
        self._parts = parts_of(self.generator, self.discriminator)
        self._norms: Row = {}
        """Of the step that is under way, if a row of it is due."""
        self._r1_norms: Row = {}
        """Of the last R1 phase: these are as rare as that."""

    def _reducer(self, name: str, model: nn.Module, num_extras: int, backwards: int = 1) -> GradientReducer:
        plan = PhasePlan(name, model.named_parameters(), num_extras)
        group, num_shards = self._session.group, self.config.batch.num_shards
        return GradientReducer(plan, group, num_shards, network=self._network, backwards=backwards)

    # The job layer's side

    def position(self) -> Position:
        counters = self.counters
        return Position(
            step=counters.step,
            num_steps=self.config.num_steps,
            epoch=epoch_of(counters.position, len(self._dataset)),
            images=counters.images,
        )

    def is_done(self) -> bool:
        return self.counters.images >= self.config.num_images

    def step(self) -> None:
        """Raises: HeldError after too many skipped steps in a row; Get3dError if a GPU's memory does not suffice."""
        try:
            self._step()
        except torch.OutOfMemoryError as error:
            raise messages.too_large(self.config, self.counters.step, self._session.device, error) from error

    def _step(self) -> None:
        if self.counters.step == 0:
            self._begin()
        begun_s = time.monotonic()
        set_rates(self.config, self._adam_g, self._adam_d, self.counters.images)
        self._expect()
        self._norms = {}
        troubles: list[str] = []
        fakes, numbers = self._generator_phase(troubles)
        numbers |= self._discriminator_phase(fakes, troubles)
        if self.counters.step % self.config.loss.r1_interval == 0:
            numbers |= self._r1_phase(troubles)
        self._zero_step()
        self._average()
        self._count(troubles)
        if self._replicas.is_due(self.counters.step):
            self.compare_replicas()
        self._rows.add(numbers, time.monotonic() - begun_s)
        self._show()

    def _begin(self) -> None:
        """See once whether all fits, say what was derived, and show the state before the first step."""
        check_fit(self.config, self._dataset)
        if self.config.init_from:
            self._begin_with(first_weights(self.config.init_from, self._session))
        factor, loss = self.config.gamma_factor, self._loss
        if factor != 1 and self._session.rank == 0:
            self._session.events.write(
                "gamma-scaled", factor=factor, gamma_rgb=loss.gamma_rgb, gamma_mask=loss.gamma_mask
            )
        self._watch(self._watches)

    def state(self) -> Mapping[str, Any]:
        adapted = {"augmentation": asdict(self._strength)} if self.config.augment.target else {}
        return adapted | {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_ema": self.average.state_dict(),
            "adam_generator": optimizer_state(self._adam_g),
            "adam_discriminator": optimizer_state(self._adam_d),
            "counters": asdict(self.counters),
            "data": data_identity(self.config, self._dataset),
        }

    def frozen_parts(self) -> Sequence[str]:
        """Return what a step changes late: the generator after its phase, the average at the end."""
        return (*GENERATOR_PARTS, *DISCRIMINATOR_PARTS, AVERAGE_PART)

    def load(self, state: Mapping[str, Any]) -> None:
        if "counters" not in state:
            raise messages.weights_alone(self._session.run)
        check_data(state["data"], self.config, self._dataset)
        self._take_weights(state)
        load_optimizer(self._adam_g, state["adam_generator"])
        load_optimizer(self._adam_d, state["adam_discriminator"])
        self.counters = Counters(**state["counters"])
        self._troubles = []
        if self.config.augment.target and "augmentation" in state:
            self._strength = Strength(**state["augmentation"])
        self._replicas.begin(self.counters.step)

    def _take_weights(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.average.load_state_dict(state["generator_ema"])

    def _begin_with(self, state: Mapping[str, Any]) -> None:
        """Take the weights of another run. Raises: UsageError if they are those of other networks."""
        try:
            self._take_weights(state)
        except (KeyError, RuntimeError) as error:
            differing = shape_differences(state, self.state()) or [" ".join(str(error).split())[:300]]
            raise messages.other_networks(self.config.init_from, differing[0]) from error

    def rollback_every_steps(self) -> int:
        guard = self.config.guard
        return guard.rollback_every_steps if guard.max_rollbacks else 0

    def rollback_step(self) -> int | None:
        """Return the last multiple before the first of too many skipped steps; None: go on."""
        return self.counters.step_to_go_back_to(self.config.guard)

    def why_held(self) -> HeldError | None:
        """Return why it does not go back to where it has been too often."""
        step = self.rollback_step()
        if step is None or self.counters.rollbacks_to(step) < self.config.guard.max_rollbacks:
            return None
        times = self.counters.rollbacks_to(step)
        return self._diverged(f", as after {times} roll-backs to step {step} before")

    def roll_back(self, state: Mapping[str, Any] | None) -> None:
        """Go back to ``state`` or to the beginning, and on with other latents, cameras, augmentation, data order."""
        before = self.counters
        self.load(self._first_state() if state is None else state)
        self.counters.count_rollback_from(before)
        self._rows, self._r1_norms = Rows(self._session, self.config.batch.size), {}
        for watch in (*self._watches, *self._mirrors):
            watch.rewind(self.position())

    def _first_state(self) -> dict[str, Any]:
        """Return the state before the first step."""
        generator, discriminator = networks(self.config, self._session.device)
        adam_g, adam_d = optimizers(self.config, generator, discriminator)
        return {
            "generator": generator.state_dict(),
            "discriminator": discriminator.state_dict(),
            "generator_ema": generator.state_dict(),
            "adam_generator": optimizer_state(adam_g),
            "adam_discriminator": optimizer_state(adam_d),
            "counters": asdict(Counters()),
            "data": data_identity(self.config, self._dataset),
            "augmentation": asdict(Strength(p=self.config.augment.p)),
        }

    def bits_depend_on(self) -> Mapping[str, Any]:
        """Return the number of workers, if the library adds their gradients."""
        return {"workers": self._session.world_size} if self.config.reduction.mode == "fast" else {}

    def agreed_step(self) -> int | None:
        """Return when all workers were last known to have the same weights; None if nobody compares."""
        return self._replicas.agreed_step()

    def compare_replicas(self) -> None:
        """Make sure that all workers have the same state, bit for bit. Raises: HeldError if not."""
        self._replicas.compare(self.state, self.counters.step)

    # Phases: what this worker's micro-shards give

    def _generator_phase(self, troubles: list[str]) -> tuple[list[Fakes], Numbers]:
        """Return the images that this worker generated, for the discriminator's phase if it uses them again."""
        self.discriminator.requires_grad_(requires_grad=False)
        kept: list[Fakes] = []
        for index in self._reduce_g.start():
            fakes = generate(self.generator, self.config, self._shard(index), GENERATOR_STREAMS, self._labels)
            augmented = self._augmented(index, Phase.AUGMENT)
            loss, numbers = generator_shard(self._judge, self.config.loss, fakes, augmented)
            loss.backward()
            self._reduce_g.add(numbers, fakes.w_mean)
            if self.config.loss.reuse_fakes:
                kept.append(fakes.detached())
        self.discriminator.requires_grad_(requires_grad=True)
        if self._session.world_size > 1 and not self.config.batch.judge_together:
            self._judge_first_reals()
        numbers, w_mean = _cut(self._reduce_g.finish(), len(GENERATOR_NUMBERS))
        if self._take_step("generator", self._adam_g, self.generator, numbers, troubles):
            self._move_w_avg(w_mean if self.config.loss.reuse_fakes else None)
        return kept, dict(named(GENERATOR_NUMBERS, numbers))

    def _judge_first_reals(self) -> None:
        """Begin the discriminator's phase while the generator's gradients are on their way.

        Real images need nothing of the generator. A gradient is the sum of both halves' either way: the real half
        first, as in one backward pass through both. Only the first shard: another's sum would need memory of its own.
        """
        first = self._reduce_d.start()[0]
        self._first_reals = self._judge_reals(first)

    def _judge_reals(self, index: int) -> Judged:
        augmented = self._augmented(index, Phase.AUGMENT_REAL)
        reals = judge_reals(self._judge, self._reals(index), augmented)
        reals.loss.total.backward()
        return reals

    def _discriminator_phase(self, kept: list[Fakes], troubles: list[str]) -> Numbers:
        first, self._first_reals = self._first_reals, None
        for place, index in enumerate(self._reduce_d.shards if first else self._reduce_d.start()):
            before = first if place == 0 else None
            if not (before or self.config.batch.judge_together):
                before = self._judge_reals(index)
            fakes = kept[place] if kept else self._fresh_fakes(index)
            judged, reals = self._judge_halves(index, fakes, before)
            votes = self._votes(is_last=index == self._reduce_d.shards[-1])
            self._reduce_d.add(discriminator_numbers(judged, reals), fakes.w_mean, votes)
        numbers, rest = _cut(self._reduce_d.finish(), len(DISCRIMINATOR_NUMBERS))
        w_mean, votes = _cut(rest, len(rest) - Ballot.SIZE)
        self._session.ballot.count((votes > 0).tolist())
        if self._take_step("discriminator", self._adam_d, self.discriminator, numbers, troubles):
            self._move_w_avg(None if self.config.loss.reuse_fakes else w_mean)
            self._adapt(numbers[-2:].tolist())
        return dict(named(DISCRIMINATOR_NUMBERS, numbers))

    def _judge_halves(self, index: int, fakes: Fakes, before: Judged | None) -> tuple[Judged, Judged]:
        """Return both halves of a shard's loss with their gradients; ``before``: the real half, if it is done."""
        augmented = self._augmented(index, Phase.D_AUGMENT)
        if before is not None:
            judged = judge_fakes(self._judge, fakes, augmented)
            judged.loss.total.backward()
            return judged, before
        also = self._augmented(index, Phase.AUGMENT_REAL)
        judged, reals = judge_both(self._judge, fakes, self._reals(index), augmented, also)
        (judged.loss.total + reals.loss.total).backward()
        return judged, reals

    def _votes(self, *, is_last: bool) -> Tensor:  # [Ballot.SIZE]
        """Return what this worker has to tell all, once a step; a sum of zeros and ones is exact."""
        votes = self._session.ballot.cast() if is_last else [False] * Ballot.SIZE
        return torch.tensor(votes, dtype=torch.float32, device=self._session.device)

    def _r1_phase(self, troubles: list[str]) -> Numbers:
        for index in self._reduce_r1.start():
            augmented = self._augmented(index, Phase.AUGMENT_R1)
            reals = self._reals(index)
            with numerics.whole_float32():
                loss, numbers = r1_shard(self.discriminator, self._loss, reals, augmented)
                loss.backward()
            self._reduce_r1.add(numbers)
        numbers = self._reduce_r1.finish()
        if self._session.rank == 0:
            self._r1_norms = gradient_norms(self._parts["r1"])
        self._take_step("r1", self._adam_d, self.discriminator, numbers, troubles)
        return dict(named(R1_NUMBERS, numbers))

    @torch.no_grad()
    def _fresh_fakes(self, index: int) -> Fakes:
        return generate(self.generator, self.config, self._shard(index), DISCRIMINATOR_STREAMS, self._labels)

    def _reals(self, index: int) -> Reals:
        size = self.config.batch.shard_size
        start = self.counters.position + index * size
        places = sample_at(self._seed, len(self._dataset), start, size)
        with self._session.pulse.counting("data"):
            images, cameras = self._dataset.batch(places)
        if self._labels is None:
            return Reals(images, cameras)
        return Reals(images, cameras, self._labels[torch.from_numpy(places)].to(images.device))

    def _augmented(self, index: int, phase: Phase) -> Augmentation:
        shard = self._shard(index)
        samples = shard.samples(self.generator.w_avg_geo.device)
        return augmentation(self.config.augment, self._strength.p, shard.seed, shard.step, phase, samples)

    def _adapt(self, signs: Sequence[float]) -> None:
        """Adapt the augmentation by how sure both heads are of real images: reduced numbers, so alike everywhere."""
        if self.config.augment.target:
            self._strength.adapt(self.config.augment, sum(signs) / len(signs), self.config.batch.size)

    def _expect(self) -> None:
        """Name the images of this step and of the next, so that they are read while the networks compute."""
        batch, shards = self.config.batch, self._reduce_d.shards
        first = self.counters.position + shards.start * batch.shard_size
        count = len(shards) * batch.shard_size
        for_steps = (
            sample_at(self._seed, len(self._dataset), first + ahead * batch.size, count) for ahead in range(2)
        )
        self._dataset.expect(itertools.chain.from_iterable(for_steps))

    @property
    def _seed(self) -> int:
        return self.counters.seed_of_draws(self.config.seed)

    def _shard(self, index: int) -> Shard:
        size = self.config.batch.shard_size
        return Shard(seed=self._seed, step=self.counters.step, index=index, size=size)

    # Updates, decided from reduced values and so alike on every worker

    def _take_step(
        self, phase: str, optimizer: Adam, model: nn.Module, numbers: Tensor, troubles: list[str]
    ) -> bool:
        """Step, unless a loss or a gradient is not finite or too large; say whether it did."""
        limit = self.config.guard.max_loss
        if trouble := trouble_of(model, numbers, losses_of(phase, numbers) if limit else {}, limit):
            troubles.append(f"{phase}: {trouble}")
            return False
        changed = GENERATOR_PARTS if optimizer is self._adam_g else DISCRIMINATOR_PARTS
        self._session.copying.wait_for(*changed)
        if phase != "r1" and self._session.rank == 0 and self._is_row_due(self.counters.step + 1):
            self._norms |= measured(optimizer.step, self._parts[phase])
        else:
            optimizer.step()
        return True

    def _move_w_avg(self, mean: Tensor | None) -> None:
        if mean is not None:
            self._session.copying.wait_for(*GENERATOR_PARTS)
            self.generator.update_w_avg(mean)

    def _zero_step(self) -> None:
        """Let Adam's moments decay once more, as upstream's empty regularisation phase does; weights stay."""
        optim = self.config.optim
        if not (optim.generator_zero_step and optim.generator_interval):
            return
        if self.counters.step % optim.generator_interval == 0:
            self._session.copying.wait_for(*GENERATOR_PARTS)
            for parameter in self.generator.parameters():
                parameter.grad = torch.zeros_like(parameter)
            self._adam_g.step()

    def _average(self) -> None:
        beta = ema.decay(self._average_config, self.counters.images, self.config.batch.size)
        self._session.copying.wait_for(AVERAGE_PART)
        ema.update(self.average, self.generator, beta)

    def _count(self, troubles: list[str]) -> None:
        """Advance the counters. Raises: HeldError after too many skipped steps in a row, if it never goes back."""
        counters, guard = self.counters, self.config.guard
        counters.count_step(self.config.batch.size, was_skipped=bool(troubles))
        if not troubles:
            return
        if self._session.rank == 0:
            self._session.events.write("skipped", step=counters.step, what=troubles)
        self._troubles = troubles
        if counters.have_diverged(guard) and not guard.max_rollbacks:
            raise self._diverged()

    def _diverged(self, after: str = "") -> HeldError:
        return messages.diverged(self.config, self._session.run, self.counters, self._troubles, after)

    # What is shown, and changes nothing

    def _show(self) -> None:
        extra = self._watch(self._watches)
        if extra or self._is_row_due(self.counters.step):
            shown: Row = {**extra, "skipped_steps": self.counters.skipped_steps}
            shown |= {"rollbacks": self.counters.rollbacks} if self.counters.rollbacks else {}
            shown |= {"augment_p": self._strength.p} if self.config.augment.target else {}
            self._rows.write(self.position(), shown | self._norms | self._r1_norms)
        self._watch(self._mirrors)

    def _is_row_due(self, step: int) -> bool:
        """Say whether there is a row after ``step`` steps, however the clocks go."""
        return step % self.config.watch.log_every_steps == 0 or step >= self.config.num_steps

    def _watch(self, watches: Sequence[Watch]) -> Numbers:
        """Let people see; a full disk must not end a training over a picture."""
        found: Numbers = {}
        for watch in watches:
            try:
                found |= watch.look(self.average, self.position(), last=self.is_done())
            except Get3dError as error:
                self._session.events.write("watch-failed", what=error.what, way_out=error.way_out)
        return found


def _cut(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return numbers[:count], numbers[count:]
