"""Sizes of micro-shards are measured in processes of their own, which may be killed."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from jobs.sizes import Config, SizesConfig, SizesWork
from tests import train_setup as setup
from tests.sessions import session_of


@pytest.fixture
def work(tmp_path: Path) -> SizesWork:
    trained = setup.tiny_config(setup.dataset(tmp_path / "data"))
    config = Config(**{each.name: getattr(trained, each.name) for each in fields(trained)})
    sizes = SizesConfig(shard_sizes=(2, 4), num_steps=1)
    return SizesWork(replace(config, sizes=sizes), session_of(tmp_path / "run"))


def finish(work: SizesWork) -> str:
    while not work.is_done():
        work.step()
    work.close()
    return (work._session.run.path / "sizes.md").read_text()


def test_each_size_is_measured_and_one_is_suggested(work: SizesWork) -> None:
    text = finish(work)
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| 2 |", "| 4 |"))]
    assert [row[2].strip() for row in rows] == ["4", "2"]
    for row in rows:
        assert all(float(row[column]) > 0 for column in (3, 4, 6))
    assert text.count("suggested") == 1
    assert "Start the training with batch.shard_size=" in text
    assert work.position().step == 2


def test_a_size_that_the_system_kills_is_told_and_the_others_are_measured(work: SizesWork) -> None:
    work.step()
    assert work._measuring is not None
    work._measuring[1]._process.kill()
    text = finish(work)
    assert "too little memory" in text
    assert "Start the training with batch.shard_size=4" in text


def test_a_notice_to_the_measuring_process_says_nothing_of_the_size(work: SizesWork) -> None:
    work.step()
    assert work._measuring is not None
    work._measuring[1]._process.terminate()
    while work._measuring:
        work.step()
    assert work.position().step == 0
    work.close()
