"""Progress for whoever watches: a moving bar for people, now and then a line where nobody can see it move."""

import os
import sys
import time

from tqdm.auto import tqdm

_SECONDS_BETWEEN_LINES = 300


def headless() -> bool:
    """Whether output goes to a file: under `reproduce`, or piped outside Jupyter."""
    in_jupyter = "ipykernel" in sys.modules
    return bool(os.environ.get("HRNETPP_HEADLESS")) or not (in_jupyter or sys.stderr.isatty())


class EpochBar:
    """The progress of one epoch, in crops.

    Args:
        name: What is under way.
        crops: In the whole epoch.
        done: Of them before this process started.
        silent: For all processes but the first.
    """

    def __init__(self, name: str, crops: int, done: int, silent: bool = False):
        self._name, self._crops, self._done, self._silent = name, crops, done, silent
        self._started = self._said = time.perf_counter()
        self._here = 0
        self._bar = tqdm(
            *(),
            desc=name,
            total=crops,
            initial=done,
            unit="crop",
            disable=silent or headless(),
            leave=False,
            dynamic_ncols=True,
        )

    def advance(self, crops: int, loss: float, lr: float) -> None:
        """Count a step."""
        self._here += crops
        self._bar.set_postfix_str(f"loss {loss:.2e}, lr {lr:.1e}", refresh=False)
        self._bar.update(crops)
        now = time.perf_counter()
        if not self._silent and headless() and now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            rate = self._here / (now - self._started)
            done = self._done + self._here
            print(
                f"{self._name}: {done}/{self._crops} crops, {rate:.1f} crops/s, loss {loss:.3e}, "
                f"lr {lr:.1e}, {(self._crops - done) / rate / 60:.0f} min to go",
                flush=True,
            )

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()
