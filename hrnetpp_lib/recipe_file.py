"""Recipes read back: the run of a recipe.json, as its folder keeps it or somebody edited it."""

import json
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, get_args, get_origin, get_type_hints

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import Run, check_run


def read_recipe(path: Path) -> Run:
    """The run that a recipe.json describes; `dataclasses.asdict` of it is what the file holds.

    Raises:
        HrnetppError: If the file cannot be read, or a field is missing, unknown or of a wrong value.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HrnetppError(f"{path}: no recipe can be read from it ({error})") from error
    try:
        run = _build(Run, content, "recipe")
        check_run(run)
    except HrnetppError as error:
        raise HrnetppError(f"{path}: {error}") from error
    return run


def _build(kind: type, value: object, where: str) -> object:
    """A value of json as the annotated type: json knows no tuples and no dataclasses."""
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise HrnetppError(f"{where} must hold the fields of a {kind.__name__}")
        known = {field.name: field.default is MISSING for field in fields(kind)}
        unknown = [name for name in value if name not in known]
        missing = [name for name, needed in known.items() if needed and name not in value]
        if missing:
            raise HrnetppError(f"{where} lacks {', '.join(missing)}")
        if unknown:
            raise HrnetppError(f"{where} has {', '.join(unknown)}, unknown to this version of the package")
        types = get_type_hints(kind)
        return kind(**{name: _build(types[name], v, f"{where}.{name}") for name, v in value.items()})
    if not _fits(kind, value):
        raise HrnetppError(f"{where} is {value!r}; give {_in_words(kind)}")
    if kind is float:
        return float(value)
    return tuple(value) if get_origin(kind) is tuple else value


def _fits(kind: type, value: object) -> bool:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is UnionType:
        return any(_fits(part, value) for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, parts, value))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # no NaN either
    return type(value) is kind  # so that True is no 1


def _in_words(kind: type) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is UnionType:
        return " or ".join(map(_in_words, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list of {', '.join(map(_in_words, get_args(kind)))}"
    return {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}.get(
        kind, "null" if kind is NoneType else str(kind)
    )
