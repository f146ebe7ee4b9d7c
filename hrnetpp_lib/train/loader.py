"""Which persons each step sees, and the processes that cut their crops."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from hrnetpp_lib.data.crops import Sample, TrainCrops, explain_workers, usable_workers
from hrnetpp_lib.errors import HrnetppError


class EpochBatches(Sampler[list[int]]):
    """This process's share of the batches of one epoch, from any step on.

    The order is a function of (seed, epoch) alone. Every process knows all of it and takes its slice of each
    batch, so a step sees the same persons on any number of processes.
    """

    def __init__(self, persons: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1):
        """See `number_of_steps` for what is refused.

        Args:
            persons: Size of the dataset.
            batch_size: Of all processes together.
            seed: Of the run.
            rank: Which process this is.
            processes: How many there are.
        """
        super().__init__()
        self.persons, self.batch_size, self.seed = persons, batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch, self.first_step = 0, 0

    def start_at(self, epoch: int, step: int) -> None:
        """Choose the epoch, and how many of its steps are done already."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return self.persons // self.batch_size - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.persons)
        share = self.batch_size // self.processes
        # CHOICE: an epoch's last, smaller batch is left out; other persons are left out in each epoch.
        for step in range(self.first_step, self.persons // self.batch_size):
            start = step * self.batch_size + self.rank * share
            yield order[start : start + share].tolist()


def number_of_steps(name: str, persons: int, batch_size: int, parts: int) -> int:
    """Steps of an epoch.

    Args:
        name: Of the data, for messages.
        persons: To train on.
        batch_size: Of all processes together.
        parts: Processes times parts that each cuts its share into.

    Raises:
        HrnetppError: If there are fewer persons than a batch holds, or it cannot be divided.
    """
    if persons < batch_size:
        raise HrnetppError(
            f"{name}: {'no person' if not persons else f'{persons} persons'} to train on, and a batch has "
            f"{batch_size}; give more data or a smaller batch"
        )
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

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Sample:
        worker = get_worker_info()
        if worker is not None:
            self.notes[worker.id] = torch.tensor([os.getpid(), index])
        return self.crops[index]


def _outlive_sigterm(worker: int) -> None:
    """In a worker: a scheduler tells all processes of a job, but the main one still needs this one's crops.

    The main process ends its workers by the same signal, so who sent it decides.
    """
    if not hasattr(signal, "sigwaitinfo"):  # neither on Windows nor on macOS
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class Loader:
    """Collated batches of one epoch."""

    def __init__(self, crops: TrainCrops, batches: EpochBatches, workers: int, pin_memory: bool):
        """Start nothing yet.

        Args:
            crops: The samples; gets the batches' epoch.
            batches: Which of them, in which order.
            workers: Loader processes, 0 for none; not more than there are cores.
            pin_memory: Whether to make transfers to a GPU faster.
        """
        crops.set_epoch(batches.epoch)
        workers = usable_workers(workers)
        notes = torch.zeros(max(workers, 1), 2, dtype=torch.int64).share_memory_()
        self._watched = _Watched(crops, notes)
        self._loader = DataLoader(
            self._watched,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_outlive_sigterm,
        )

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._loader)

    def explain_deaths(self) -> contextlib.AbstractContextManager[None]:
        """Around the loop over the batches; see `explain_workers`."""
        return explain_workers(lambda process_ids: _obituary(process_ids, self._watched))


def _obituary(process_ids: list[int], watched: _Watched) -> str:
    """Who died, and over what."""
    lines = []
    for process_id in process_ids:
        at = [person for owner, person in watched.notes.tolist() if owner == process_id]
        table = watched.crops.table
        what = f"person {at[0]}, {table.image_path(at[0])}" if at else "its first person"
        lines.append(f"loader worker {process_id} died while reading {what}")
    return (
        "; ".join(lines) + ". Often memory ran out: use fewer workers, or look at that picture. The same "
        "command goes on from the last saved state"
    )
