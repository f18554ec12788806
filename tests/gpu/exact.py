"""The same bits: from run to run, across a resume in a new process, and on one, two and three workers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from get3d_cluster.runtime.env import WorkerEnv, child_environment, worker_variables
from get3d_cluster.runtime.fingerprint import numeric_fingerprint
from get3d_cluster.train.config import BatchConfig
from tests.gpu.setting import (
    Facts,
    Setting,
    digest,
    full_size,
    middle_size,
    milliseconds,
    tiny_test,
    trainer,
)

STEPS = 6
"""Of a whole run; the resume is in the middle. Holds two R1 phases (every 3) and three zero steps (every 2)."""


def check_steps_twice(setting: Setting) -> Facts:
    """Two trainings from the beginning: equal states after the first step (G, D, R1) and after the last."""
    digests = []
    for _ in range(2):
        work = trainer(setting, tiny_test())
        run = []
        for _ in range(STEPS):
            work.step()
            run.append(digest(work))
        digests.append(run)
    assert digests[0] == digests[1], f"first differing step: {_first_difference(*digests)}"
    assert len(set(digests[0])) == STEPS, "a step changed nothing"
    return {"digest": digests[0][-1], "on": numeric_fingerprint(setting.device)}


def check_resume_in_a_new_process(setting: Setting) -> Facts:
    """Save in the middle, load in another process, go on: the state of the run that was never interrupted."""
    whole = _run(setting, setting.path("whole"), 1, STEPS)
    folder = setting.path("resumed")
    parts = _run(setting, folder, 1, STEPS // 2) + _run(setting, folder, 1, STEPS - STEPS // 2)
    assert parts == whole, f"first differing step: {_first_difference(parts, whole)}"
    return {"digest": whole[-1], "checkpoint files": setting.has("safetensors")}


def check_world_sizes(setting: Setting) -> Facts:
    """One, two and three workers on one device, and a change from two to one to three: equal states at each step."""
    whole = _run(setting, setting.path("one"), 1, STEPS)
    facts: Facts = {"digest": whole[-1]}
    for world in (2,) if setting.toy else (2, 3):
        digests = _run(setting, setting.path("several"), world, STEPS)
        assert digests == whole, f"{world} workers: first differing step {_first_difference(digests, whole)}"
        facts[f"{world} workers"] = "equal"
    if setting.toy:
        return facts
    folder = setting.path("changing")
    changing = [d for world in (2, 1, 3) for d in _run(setting, folder, world, STEPS // 3)]
    assert changing == whole, f"2, then 1, then 3: first differing step {_first_difference(changing, whole)}"
    return facts | {"2, then 1, then 3 workers": "equal"}


def check_price_of_determinism(setting: Setting) -> Facts:
    """What the switches of exactness cost at a middle size; the paper's size is in the part `speed`."""
    config = full_size(setting) if setting.toy else _middle(setting)
    work = trainer(setting, config)
    exact = milliseconds(setting, work.step)
    try:
        torch.use_deterministic_algorithms(mode=False)
        free = milliseconds(setting, work.step)
    finally:
        torch.use_deterministic_algorithms(mode=True)
    return {"exact, ms/step": exact, "free, ms/step": free, "ratio": round(exact / free, 3)}


def _middle(setting: Setting):
    generator = replace(middle_size(setting), latent_channels=64)
    config = tiny_test()
    size = generator.render.image_size_px
    judge = replace(
        config.discriminator,
        image_size_px=size,
        channels=(),
        channel_base=4096,
        channel_max=128,
        minibatch_group=4,
    )
    loss = replace(config.loss, r1_interval=1)
    batch = BatchConfig(num_shards=1, shard_size=4)
    return replace(config, generator=generator, discriminator=judge, batch=batch, loss=loss)


def _first_difference(ours: list[str], theirs: list[str]) -> int | None:
    differing = (i + 1 for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return next(differing, None)


def _run(setting: Setting, folder: Path, world: int, steps: int) -> list[str]:
    """Run workers in processes of their own; return rank 0's digest after each step, equal to the others'."""
    meeting = folder / f"meeting{len(list(folder.glob('meeting*')))}"
    meeting.mkdir()
    workers = [_start(setting, folder, meeting, rank, world, steps) for rank in range(world)]
    try:
        told = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for rank, (worker, text) in enumerate(zip(workers, told, strict=True)):
        assert worker.returncode == 0, f"rank {rank} of {world}: exit {worker.returncode}\n{text[-3000:]}"
    digests = [[line.split()[1] for line in text.splitlines() if line.startswith("digest ")] for text in told]
    assert all(own == digests[0] for own in digests), "the workers differ from each other"
    assert len(digests[0]) == steps, told[0][-3000:]
    return digests[0]


def _start(setting: Setting, folder: Path, meeting: Path, rank: int, world: int, steps: int):
    variables = worker_variables(WorkerEnv(rank=rank, local_rank=rank, world_size=world, attempt=1), cpus=1)
    arguments = [str(folder), str(meeting), setting.device, str(steps), ",".join(setting.without)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.one_rank", *arguments],
        cwd=Path(__file__).parents[2],
        env=child_environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


CHECKS = (
    check_steps_twice,
    check_resume_in_a_new_process,
    check_world_sizes,
    check_price_of_determinism,
)
