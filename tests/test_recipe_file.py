"""Recipes come back as they were, and one that somebody edited wrongly is refused before it trains."""

import copy
import json
from dataclasses import asdict, replace

import pytest

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import (
    PROFILES,
    SMOKE,
    STAGE2,
    Augmentation,
    ablation_runs,
    read_recipe,
    resolve,
    three_stages,
)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_round_trip(tmp_path, profile):
    for run in (*three_stages(profile, seed=3), *ablation_runs(profile)):
        back = read_recipe(write(tmp_path / "recipe.json", asdict(run)))
        assert back == run and back.hash == run.hash


def test_whole_numbers_where_the_recipe_holds_others_are_the_same_run(tmp_path):
    run = resolve(replace(STAGE2, augmentation=Augmentation(rotation_bound_deg=45.0)), SMOKE)
    content = asdict(run)
    content["stage"]["augmentation"]["rotation_bound_deg"] = 45
    assert read_recipe(write(tmp_path / "recipe.json", content)).hash == run.hash


WRONG = {
    "stage.epochs": (0, "5", 2.5, None, True),
    "stage.dataset": ("foo", 1),
    "stage.loss": ("xyz",),
    "stage.name": ("foo",),
    "stage.lr_start": ("abc", float("nan"), float("inf"), 10**400, -1.0),
    "stage.alpha": (0,),
    "stage.coordinates": ("foo",),
    "stage.augmentation.scale_std": ("x",),
    "stage.augmentation.flip_probability": (1.5,),
    "stage.augmentation": (3,),
    "profile.precision": ("fp16",),
    "profile.name": ("../elsewhere", ""),
    "profile.data": ("foo",),
    "profile.input_hw": (None, [60, 60], [64], [64.0, 64]),
    "profile.workers": ("two", -1),
    "profile.boxes": (5,),
    "profile.batch_size": (0, -8),
    "profile.eval_every": (0,),
    "profile.heatmap_sigma": (-1,),
    "profile.network.modules": ([1, 1], 1),
    "profile.network.depth": (4,),
    "architecture.se": ("no", 1),
    "seed": ("x", -1),
    "previous": (7, "../model"),
}


@pytest.mark.parametrize(("place", "value"), [(place, v) for place, values in WRONG.items() for v in values])
def test_a_wrong_value_is_named_with_its_file_and_field(tmp_path, place, value):
    content = copy.deepcopy(asdict(three_stages(SMOKE)[1]))
    *way, last = place.split(".")
    part = content
    for name in way:
        part = part[name]
    part[last] = value
    path = write(tmp_path / "recipe.json", content)
    with pytest.raises(HrnetppError) as caught:
        read_recipe(path)
    message = str(caught.value)
    named = {"stage.name": "stage", "profile.name": "name", "previous": "name" if value != 7 else last}
    assert message.startswith(f"{path}: ") and named.get(place, last) in message and "\n" not in message


@pytest.mark.parametrize("content", [[], 3, {"stage": {}}, {}])
def test_what_is_no_recipe(tmp_path, content):
    with pytest.raises(HrnetppError, match=r"recipe.json: recipe (lacks|must hold)"):
        read_recipe(write(tmp_path / "recipe.json", content))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(HrnetppError, match=r"none.json: no recipe can be read"):
        read_recipe(tmp_path / "none.json")
    (tmp_path / "torn.json").write_bytes(b'{"stage": \xff')
    with pytest.raises(HrnetppError, match=r"torn.json: no recipe can be read"):
        read_recipe(tmp_path / "torn.json")
