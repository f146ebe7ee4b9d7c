"""Lists of json objects read a column at a time; every complaint names the file, the record and a remedy."""

import contextlib
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from hrnetpp_lib.errors import HrnetppError


@dataclass(frozen=True)
class Records:
    """Objects of one list in a json file.

    Attributes:
        path: The file.
        kind: What messages call one of them.
        items: The objects.
        numbers: Their places in the file's list, if items are a selection.

    Raises:
        HrnetppError: From every method, if a record is not what the method says.
    """

    path: Path
    kind: str
    items: list[dict]
    numbers: np.ndarray | None = None

    def __post_init__(self) -> None:
        for number, item in enumerate(self.items):
            if not isinstance(item, dict):
                raise HrnetppError(
                    f"{self.path}: {self.kind} {number} is no json object; is this the right file?"
                )

    def fail(self, number: int, problem: str) -> NoReturn:
        """Complains about one record."""
        record, place = self.items[number], number if self.numbers is None else self.numbers[number]
        label = record.get("id", record.get("image_id"))
        raise HrnetppError(f"{self.path}: {self.kind} {place} (id {label}): {problem}; correct or remove it")

    def forbid(self, wrong: np.ndarray, problem: str) -> None:
        """Complains about the first record where the (N,) mask is True."""
        if wrong.any():
            self.fail(int(wrong.argmax()), problem)

    def forbid_repeated(self, values: np.ndarray, field: str) -> None:
        """Complains about the first record whose value occurred before."""
        repeated = np.ones(len(values), bool)
        repeated[np.unique(values, return_index=True)[1]] = False
        self.forbid(repeated, f"its {field} occurs twice")

    def select(self, keep: np.ndarray) -> "Records":
        """The records where the (N,) mask is True; they keep the numbers of the full list."""
        numbers = np.flatnonzero(keep)
        return replace(self, items=[self.items[number] for number in numbers], numbers=numbers)

    def integers(self, field: str) -> np.ndarray:
        """(N,) int64."""
        values = self._column(field, (int,), "an integer")
        try:
            return np.array(values, np.int64)
        except OverflowError:
            raise HrnetppError(
                f"{self.path}: a '{field}' of some {self.kind} exceeds 64 bits; correct it"
            ) from None

    def floats(self, field: str) -> np.ndarray:
        """(N,) float64, finite."""
        values = np.array(self._column(field, (int, float), "a number"), np.float64)
        self.forbid(~np.isfinite(values), f"field '{field}' is not finite")
        return values

    def texts(self, field: str) -> np.ndarray:
        """(N,) bytes, UTF-8."""
        values = self._column(field, (str,), "a text")
        return np.array([value.encode() for value in values], dtype=np.bytes_)

    def rows(self, field: str, width: int) -> np.ndarray:
        """(N, width) float64, finite."""
        return stack_rows([item.get(field) for item in self.items], width, field, self.fail)

    def find(self, field: str, known: np.ndarray) -> np.ndarray:
        """(N,) int32: where in `known` each record's integer `field` stands."""
        values = self.integers(field)
        self.forbid(~np.isin(values, known), f"its {field} is not among the ids of the images")
        order = np.argsort(known)
        return order[np.searchsorted(known, values, sorter=order)].astype(np.int32)

    def _column(self, field: str, types: tuple[type, ...], wanted: str) -> list:
        values = [item.get(field) for item in self.items]
        for number, value in enumerate(values):
            if type(value) not in types:
                self.fail(number, f"field '{field}' must be {wanted}, found {value!r}")
        return values


def stack_rows(values: list, width: int, field: str, fail: Callable[[int, str], NoReturn]) -> np.ndarray:
    """Number lists as `load_json` packs them, each of `width` finite numbers, as one array.

    Args:
        values: N of them.
        width: Numbers in each.
        field: How messages call them.
        fail: Called with the index and the problem of the first that is wrong.

    Returns:
        (N, width) float64.
    """
    for number, value in enumerate(values):
        if not isinstance(value, array) or len(value) != width:
            found = f"{len(value)} entries" if isinstance(value, array) else repr(value)
            fail(number, f"{field} must be {width} numbers, found {found}")
    stacked = np.frombuffer(bytearray().join(values), np.float64).reshape(-1, width)
    unclean = ~np.isfinite(stacked).all(1)
    if unclean.any():
        fail(int(unclean.argmax()), f"{field} holds NaN or infinity")
    return stacked


def load_json(path: Path, kind: type) -> dict | list:
    """The document of a json file, lists of numbers packed as array('d') and outlines left out.

    Args:
        path: The file.
        kind: What its top level must be, dict or list.

    Raises:
        HrnetppError: If it is missing, truncated, no json or of another kind.
    """
    try:
        with path.open(encoding="utf-8") as file:
            document = json.load(file, object_hook=_compact)
    except FileNotFoundError:
        raise HrnetppError(f"{path}: there is no such annotation file; check the path") from None
    except OSError as error:
        raise HrnetppError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise HrnetppError(f"{path}: truncated or not json ({error}); download or write it again") from None
    if not isinstance(document, kind):
        wanted, found = kind.__name__, type(document).__name__
        raise HrnetppError(
            f"{path}: the top level must be a {wanted}, found a {found}; COCO ground truth is a dict, COCO "
            "detections and AI Challenger annotations are lists; is it the right file?"
        )
    return document


def _compact(record: dict) -> dict:
    # Runs on every object while the json is parsed: outlines and boxed numbers are most of a file's memory.
    record.pop("segmentation", None)
    for field, value in record.items():
        if type(value) is list and value:
            with contextlib.suppress(
                TypeError, OverflowError
            ):  # not a list of numbers; its reader will complain
                record[field] = array("d", value)
    return record
