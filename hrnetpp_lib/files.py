"""Files that are there whole or not at all, through a power cut, too."""

import os
from pathlib import Path


def replace_durably(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, once its content has reached the disk.

    Args:
        temporary: In the same folder as `path`.
        path: Replaced if it exists.

    Raises:
        OSError: If the content cannot be written.
    """
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def project_root() -> Path:
    """Folder of data/, runs/ and figures/ unless told otherwise: the checkout, else the current folder."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
