"""Which persons a step sees, on any number of processes and from any step on; and workers that die."""

import gc
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.data.crops import TrainCrops, usable_workers
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import SMOKE, STAGE2, resolve
from hrnetpp_lib.train.loader import EpochBatches, Loader, number_of_steps

RUN = resolve(STAGE2, SMOKE)


def batches(persons=23, size=6, seed=1, rank=0, processes=1, epoch=0, step=0) -> list[list[int]]:
    sampler = EpochBatches(persons, size, seed, rank, processes)
    sampler.start_at(epoch, step)
    listed = list(sampler)
    assert len(listed) == len(sampler)
    return listed


def test_an_epoch_shows_each_person_once_but_the_rest_of_the_last_batch():
    seen = np.concatenate(batches())
    assert len(seen) == 18 and len(set(seen.tolist())) == 18 and set(seen) <= set(range(23))
    assert batches() == batches() != batches(epoch=1) != batches(epoch=1, seed=2)
    assert batches(epoch=1) != batches(epoch=0, seed=2)  # neighbouring seeds are not shifted epochs


@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 6]), st.integers(0, 3), st.integers(0, 4))
def test_processes_share_the_batches_of_one(extra, processes, epoch, step):
    persons = 6 * step + extra + 6
    shares = [batches(persons, 6, 5, rank, processes, epoch, step) for rank in range(processes)]
    together = [sum(parts, []) for parts in zip(*shares, strict=True)]
    assert together == batches(persons, 6, 5, epoch=epoch)[step:]


def test_number_of_steps_and_what_it_refuses():
    assert number_of_steps("set", 23, 6, 3) == 3
    with pytest.raises(HrnetppError, match="set: 5 persons to train on, and a batch has 6"):
        number_of_steps("set", 5, 6, 1)
    with pytest.raises(HrnetppError, match="set: no person to train on"):
        number_of_steps("set", 0, 6, 1)
    with pytest.raises(HrnetppError, match="batch of 6 cannot be divided into 4 .*1, 2, 3, 6"):
        number_of_steps("set", 23, 6, 4)


def iterate(crops, sampler, workers):
    loader = Loader(crops, sampler, workers, pin_memory=False)
    with loader.explain_deaths():
        yield from loader


@pytest.fixture
def six_persons(one_person):
    return one_person.select(np.zeros(6, int))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_bring_what_the_dataset_gives(six_persons, workers):
    crops, sampler = TrainCrops.of_run(six_persons, RUN), EpochBatches(6, 2, seed=3)
    sampler.start_at(4, 1)
    found = list(iterate(crops, sampler, workers))
    assert [batch.person.tolist() for batch in found] == list(sampler)
    sample = TrainCrops.of_run(crops.table, RUN, epoch=4)[found[0].person[1].item()]
    assert np.array_equal(found[0].image[1].numpy(), sample.image)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_picture_is_named_in_one_line(tmp_path, six_persons, workers):
    (tmp_path / "dots.png").write_bytes(b"torn")
    with pytest.raises(HrnetppError) as caught:
        list(iterate(TrainCrops.of_run(six_persons, RUN), EpochBatches(6, 2, 0), workers))
    assert str(caught.value).startswith(str(tmp_path / "dots.png")) and "\n" not in str(caught.value)


class Deadly(TrainCrops):
    """Kills the process that asks for person 4."""

    def __getitem__(self, index):
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_reported_with_its_person_whatever_the_main_process_does(six_persons):
    # torch reports the death from a signal handler. A loader that an earlier test left in a reference cycle,
    # destroyed by the garbage collector at that moment, would swallow the report: destroyed now instead.
    gc.collect()
    crops = Deadly.of_run(six_persons, replace(RUN, seed=2))
    loader = Loader(crops, EpochBatches(6, 2, 0), 2, pin_memory=False)
    message = r"worker \d+ died while reading person 4, .*dots.png"
    with pytest.raises(HrnetppError, match=message), loader.explain_deaths():
        for _ in loader:
            time.sleep(0.5)


def test_a_scheduler_that_tells_all_processes_costs_no_worker(six_persons):
    """SIGTERM to a worker that is at work, while the main process waits for it."""
    batches = iter(Loader(Told.of_run(six_persons, RUN), EpochBatches(6, 2, 0), 2, pin_memory=False))
    assert next(batches).person.tolist() == next(iter(EpochBatches(6, 2, 0)))
    for worker in batches._workers:  # while the main process can still end them, or it would never exit
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


class Told(TrainCrops):
    """Tells the process that asks, as a scheduler would."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def test_workers_share_the_cores_with_the_processes_that_train(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [usable_workers(n) for n in (0, 3, 99)] == [0, 3, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert usable_workers(99) == 2
