"""Which persons each step sees, and the processes that cut their crops."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from hrnetpp_lib.data.crops import Sample, TrainCrops, explain_workers, usable_workers
from hrnetpp_lib.errors import HrnetppError


@dataclass(frozen=True)
class EpochBatches:
    """This process's share of the batches of one epoch, from any step on.

    The order is a function of (seed, epoch) alone. Every process knows all of it and takes its slice of each
    batch, so a step sees the same persons on any number of processes.
    """

    persons: int  # in the dataset
    batch_size: int  # of all processes together
    seed: int
    rank: int = 0  # which process this is
    processes: int = 1
    epoch: int = 0
    first_step: int = 0  # how many steps of the epoch are done already

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.persons)
        share = self.batch_size // self.processes
        # CHOICE: an epoch's last, smaller batch is left out; other persons are left out in each epoch.
        for step in range(self.first_step, self.persons // self.batch_size):
            start = step * self.batch_size + self.rank * share
            yield order[start : start + share].tolist()


def number_of_steps(name: str, persons: int, batch_size: int, parts: int) -> int:
    """Steps of an epoch whose batches are cut into `parts`. Raises: HrnetppError if there is none such."""
    if persons < batch_size:
        few = f"{persons} persons" if persons else "no person"
        advice = "give more data or a smaller batch"
        raise HrnetppError(f"{name}: {few} to train on, and a batch has {batch_size}; {advice}")
    if batch_size % parts:
        fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        raise HrnetppError(
            f"a batch of {batch_size} cannot be divided into {parts} equal parts (processes x accumulate); "
            f"choose a product among {', '.join(map(str, fitting))}"
        )
    return persons // batch_size


@dataclass
class _Watched(Dataset):
    """A dataset whose workers leave a note of what they are reading, for the case that they die of it."""

    crops: TrainCrops
    notes: torch.Tensor  # (workers, 2) process id and person, in shared memory

    def __getitem__(self, index: int) -> Sample:
        if worker := get_worker_info():
            self.notes[worker.id] = torch.tensor([os.getpid(), index])
        return self.crops[index]


_CAN_OUTLIVE = hasattr(signal, "sigwaitinfo")  # neither on Windows nor on macOS


def _outlive_sigterm(worker: int) -> None:
    """In a worker: a scheduler tells all processes of a job, but the main one still needs its crops."""
    # The main process ends its workers by the same signal, so who sent it decides.
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def load_batches(
    crops: TrainCrops, batches: EpochBatches, workers: int, pin_memory: bool = False
) -> Iterator[Iterator[Sample]]:
    """Around the loop over an epoch's collated batches; a worker that dies is named with its person."""
    crops.set_epoch(batches.epoch)
    workers = usable_workers(workers)
    notes = torch.zeros(max(workers, 1), 2, dtype=torch.int64).share_memory_()

    def obituary(process_ids: list[int]) -> str:
        persons, lines = dict(notes.tolist()), []
        for dead in process_ids:
            person = persons.get(dead)
            what = (
                "its first person" if person is None else f"person {person}, {crops.table.image_path(person)}"
            )
            lines.append(f"loader worker {dead} died while reading {what}")
        return (
            f"{'; '.join(lines)}. Often memory ran out: use fewer workers, or look at that picture. The same "
            "command goes on from the last saved state"
        )

    protected = {"worker_init_fn": _outlive_sigterm} if workers and _CAN_OUTLIVE else {}
    loader = DataLoader(
        _Watched(crops, notes), batch_sampler=batches, num_workers=workers, pin_memory=pin_memory, **protected
    )
    with explain_workers(obituary):
        if not protected:
            yield iter(loader)
            return
        # Blocked before the workers begin, so that each of their threads inherits it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            arriving = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield arriving
