"""Progress for whoever watches: a moving bar for people, nothing where nobody can see it move."""

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def headless() -> bool:
    """Whether output goes to a file: under `reproduce`, or piped outside Jupyter."""
    in_jupyter = "ipykernel" in sys.modules
    return bool(os.environ.get("HRNETPP_HEADLESS")) or not (in_jupyter or sys.stderr.isatty())


def progress_bar(items: Iterable, description: str) -> tqdm:
    """A tqdm bar over items, disabled when headless."""
    return tqdm(items, desc=description, disable=headless(), leave=False, dynamic_ncols=True)
