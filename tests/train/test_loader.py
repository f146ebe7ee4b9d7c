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

from hrnetpp_lib.data.crops import TrainCrops
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import SMOKE, STAGE2, resolve
from hrnetpp_lib.train.loader import EpochBatches, load_batches, number_of_steps

RUN = resolve(STAGE2, SMOKE)


def batches(persons=23, size=6, seed=1, **at) -> list[list[int]]:
    return list(EpochBatches(persons, size, seed, **at))


def test_an_epoch_shows_each_person_once_but_the_rest_of_the_last_batch():
    seen = np.concatenate(batches())
    assert len(seen) == 18 and len(set(seen.tolist())) == 18 and set(seen) <= set(range(23))
    assert batches() == batches() != batches(epoch=1) != batches(epoch=1, seed=2)
    assert batches(epoch=1) != batches(epoch=0, seed=2)  # neighbouring seeds are not shifted epochs


@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 6]), st.integers(0, 3), st.integers(0, 4))
def test_processes_share_the_batches_of_one(extra, processes, epoch, step):
    persons, at = 6 * step + extra + 6, {"epoch": epoch, "first_step": step}
    shares = [batches(persons, rank=rank, processes=processes, **at) for rank in range(processes)]
    together = [sum(parts, []) for parts in zip(*shares, strict=True)]
    assert together == batches(persons, epoch=epoch)[step:]


def test_number_of_steps_and_what_it_refuses():
    assert number_of_steps("set", 23, 6, 3) == 3
    for persons, parts, message in (
        (5, 1, "set: 5 persons to train on, and a batch has 6"),
        (0, 1, "set: no person to train on"),
        (23, 4, "batch of 6 cannot be divided into 4 .*1, 2, 3, 6"),
    ):
        with pytest.raises(HrnetppError, match=message):
            number_of_steps("set", persons, 6, parts)


@pytest.fixture
def six_persons(one_person):
    return one_person.select(np.zeros(6, int))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_bring_what_the_dataset_gives_and_name_a_torn_picture(tmp_path, six_persons, workers):
    crops, mine = TrainCrops.of_run(six_persons, RUN), EpochBatches(6, 2, seed=3, epoch=4, first_step=1)
    with load_batches(crops, mine, workers) as loader:
        found = list(loader)
    assert [batch.person.tolist() for batch in found] == list(mine) and len(found) == 2
    sample = TrainCrops.of_run(crops.table, RUN, epoch=4)[found[0].person[1].item()]
    assert np.array_equal(found[0].image[1].numpy(), sample.image)
    (tmp_path / "dots.png").write_bytes(b"torn")
    one_line = pytest.raises(HrnetppError, match=rf"^{tmp_path / 'dots.png'}[^\n]*$")
    with one_line, load_batches(crops, mine, workers) as loader:
        list(loader)


class Told(TrainCrops):
    """Sends the process that asks for a person that person's signal."""

    signals: dict[int, int]

    def __getitem__(self, index):
        if index in self.signals:
            os.kill(os.getpid(), self.signals[index])
        return super().__getitem__(index)


def test_a_worker_that_dies_is_reported_with_its_person_whatever_the_main_process_does(six_persons):
    # torch reports the death from a signal handler. A loader that an earlier test left in a reference cycle,
    # destroyed by the garbage collector at that moment, would swallow the report: destroyed now instead.
    gc.collect()
    crops = Told.of_run(six_persons, replace(RUN, seed=2))
    crops.signals = {4: signal.SIGKILL}
    obituary = pytest.raises(HrnetppError, match=r"worker \d+ died while reading person 4, .*dots.png")
    with obituary, load_batches(crops, EpochBatches(6, 2, 0), 2) as loader:
        for _ in loader:
            time.sleep(0.5)


def test_a_scheduler_that_tells_all_processes_costs_no_worker(six_persons):
    """SIGTERM to a worker that is at work, while the main process waits for it."""
    crops = Told.of_run(six_persons, RUN)
    crops.signals = dict.fromkeys(range(6), signal.SIGTERM)
    with load_batches(crops, EpochBatches(6, 2, 0), 2) as loader:
        arriving = iter(loader)
        assert next(arriving).person.tolist() == batches(6, 2, 0)[0]
        for worker in arriving._workers:  # while the main process can still end them, or it would never exit
            worker.terminate()
            worker.join(10)
            assert worker.exitcode == 0
