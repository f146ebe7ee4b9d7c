"""The recipe states the report's numbers, is named by what decides the weights, and comes back as it was."""

import hashlib
import json
from dataclasses import asdict, replace
from functools import reduce
from operator import getitem
from typing import get_args, get_type_hints

import pytest
import torch

from hrnetpp_lib import recipe
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.recipe import (
    COCO,
    HRNET,
    LSPET_CPU,
    MINI,
    PROFILES,
    SMOKE,
    STAGE1,
    STAGE2,
    STAGE3,
    resolve,
)


def test_the_reports_three_stages_which_the_coco_profile_leaves_unscaled():
    assert [(s.dataset, s.loss, s.epochs, s.lr_start, s.lr_end) for s in (STAGE1, STAGE2, STAGE3)] == [
        ("ai_challenger", "heatmap_mse", 30, 1e-3, 1e-3),
        ("coco", "heatmap_mse", 150, 1e-3, 5e-5),
        ("coco", "softargmax_l1", 20, 2e-5, 2e-7),
    ]
    assert STAGE3.alpha == 60 and STAGE3.decoder == "soft_argmax" and STAGE2.decoder == "quarter_offset"
    assert [run.stage for run in recipe.three_stages(COCO)] == [STAGE1, STAGE2, STAGE3]
    assert COCO.input_hw == (384, 288) and COCO.batch_size == 96 and COCO.heatmap_sigma == 3


def test_ablations_are_baseline_each_switch_alone_and_all():
    switches = ("avgpool_down", "se", "skips", "subpixel_head")
    on = [[name for name in sorted(one.switches) if one.switches[name]] for one in recipe.ABLATIONS]
    assert on == [[], ["se"], ["avgpool_down"], ["skips"], ["subpixel_head"], [*switches]]
    assert {one.name: one for one in recipe.ABLATIONS} == recipe.ARCHITECTURES
    runs = recipe.ablation_runs(MINI)
    assert len({run.hash for run in runs}) == 6 and all(run.previous is None for run in runs)


def test_hash_follows_what_decides_the_weights_and_nothing_else():
    run = resolve(STAGE2, MINI)
    for profile in (MINI, replace(MINI, workers=7, eval_every=5)):
        assert run.hash == resolve(STAGE2, profile).hash
    changes = [{"batch_size": 8}, {"synthetic_persons": (10, 10, 10)}]
    others = [resolve(STAGE2, replace(MINI, **change)) for change in changes]
    others += [resolve(STAGE2, MINI, HRNET), resolve(STAGE2, MINI, seed=1), resolve(STAGE2, MINI, epochs=3)]
    others.append(resolve(STAGE2, MINI, previous=resolve(STAGE1, MINI)))
    others.append(resolve(replace(STAGE2, alpha=27), MINI))
    assert len({run.hash, *(other.hash for other in others)}) == 8


# Of the last stage (it contains those before it), of a chain of plain HRNets with seed 3, of an ablation.
HASHES = {
    "smoke": ("bc15340f2d", "e3d61857fc", "1b04c5c78a"),
    "mini": ("e11097da75", "65402eba9b", "958a029575"),
    "lspet_cpu": ("f44a3a2e2d", "fb859a1296", "9b826439e7"),
    "lspet": ("432b8faaff", "30468f86cf", "9d4c57327e"),
    "coco": ("d1ae0b09b6", "039041e516", "15adcba110"),
}


def test_plain_hrnet_has_rates_of_its_own_on_photographs_but_not_among_the_ablations():
    rates = ((LSPET_CPU, HRNET, 2.5e-4, 1.25e-5), (LSPET_CPU, recipe.HRNETPP, 2e-3, 1e-4))
    rates += tuple((MINI, one, 1e-3, 5e-5) for one in (HRNET, recipe.HRNETPP))
    for profile, architecture, start, end in rates:
        first, second, _ = recipe.three_stages(profile, architecture)
        assert first.stage.lr_start == pytest.approx(start)
        assert second.stage.lr_end == pytest.approx(end)
    ablations = recipe.ablation_runs(LSPET_CPU)
    assert {(run.stage.lr_start, run.stage.lr_end) for run in ablations} == {(1e-3, 5e-5)}


def test_the_runs_of_today_are_found_again(monkeypatch):
    monkeypatch.setattr(recipe, "has_bf16", lambda: True)
    texts = []
    for profile in PROFILES.values():
        chains = (
            recipe.three_stages(profile),
            recipe.three_stages(profile, HRNET, seed=3),
            recipe.ablation_runs(profile),
        )
        assert (chains[0][2].hash, chains[1][2].hash, chains[2][3].hash) == HASHES[profile.name]
        texts += [run.describe() for chain in chains for run in chain]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    assert digest == "ac6b958540f0e046c38378f153543ab10a4b2904852eaeeab761c11f7ab3cbd0"


def test_of_precision_auto_a_run_is_in_bf16_where_that_is_fast(monkeypatch):
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(recipe, "has_bf16", lambda answer=fast: answer)
        run = resolve(STAGE2, MINI)
        assert (
            run == resolve(STAGE2, replace(MINI, precision=precision)) and run.profile.precision == precision
        )
        assert resolve(STAGE2, SMOKE).profile.precision == "fp32"
        assert resolve(STAGE2, COCO).profile.precision == "bf16"
    with pytest.raises(HrnetppError, match="a run's precision is fp32 or bf16; `resolve` decides"):
        recipe.check_run(replace(run, profile=MINI))


def test_bf16_is_fast_where_there_are_instructions_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for told, expected in (({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda answer=told: answer, raising=False)
        assert recipe.has_bf16() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert recipe.has_bf16() is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for answer in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, a=answer: a)
        assert recipe.has_bf16() is answer


def test_a_changed_first_stage_changes_the_whole_chain():
    first, second = map(recipe.three_stages, (MINI, replace(MINI, epochs=(1, *MINI.epochs[1:]))))
    assert not {run.name for run in first} & {run.name for run in second}
    assert [run.previous for run in first] == [None, first[0].name, first[1].name]


def test_of_an_unknown_profile_the_valid_ones_are_listed():
    with pytest.raises(HrnetppError, match="'huge'.*smoke, mini, lspet_cpu, lspet, coco"):
        recipe.get_profile("huge")
    assert recipe.get_profile("mini") is MINI


def each(cases: dict[str, list]):
    """Parameters of a test: every field with every one of its values."""
    return [(name, value) for name, values in cases.items() for value in values]


# fmt: off
IMPOSSIBLE = {
    "input_hw": [(100, 96), (2**20, 96), (4096, 4096, 32)], "batch_size": [0, 10**9, 8.0, 2**18],
    "heatmap_sigma": [0.0, float("nan")], "epochs": [(1, 2)], "lr_scales": [(1.0, float("inf"), 1.0)],
    "synthetic_persons": [(3, -1, 2), (3, 2, 10**9)], "holdout_persons": [-5], "workers": [10**6],
    "boxes": ["../../elsewhere.json"], "imagenet_weights": ["/elsewhere.pth", "\udcff"],
    "network": [recipe.NetworkSize(10**6), recipe.NetworkSize(256), recipe.NetworkSize(modules=(1, 4))],
}
# fmt: on


@pytest.mark.parametrize(("field", "value"), each(IMPOSSIBLE))
def test_impossible_budgets_are_refused(field, value):
    with pytest.raises(HrnetppError, match="a profile cannot be|profile 'mini'") as caught:
        resolve(STAGE2, replace(MINI, **{field: value}))
    assert "\n" not in str(caught.value)


def test_the_largest_numbers_that_make_sense_pass(monkeypatch):
    monkeypatch.setattr(recipe, "has_bf16", lambda: False)
    large = replace(
        MINI, input_hw=(2048, 1024), batch_size=512, network=recipe.NetworkSize(192, 4, (1, 4, 3))
    )
    assert resolve(STAGE2, large, seed=2**63 - 1).profile == replace(large, precision="fp32")
    with pytest.raises(HrnetppError, match="2\\^30"):
        resolve(STAGE2, replace(large, batch_size=513))
    # W48's branches: 8 convolutions of 9 weights per pair of channels, in 1, 4 and 3 modules.
    squares = 48**2 + 96**2, 192**2, 384**2
    by_hand = 1 * squares[0] + 4 * sum(squares[:2]) + 3 * sum(squares)
    assert recipe.NetworkSize().weights_of_branches == 8 * 9 * by_hand


def test_a_stage_that_is_none_and_a_name_of_other_switches_are_refused():
    with pytest.raises(HrnetppError, match="'stage4' is unknown; choose one of stage1_ai_challenger, stage2"):
        resolve(replace(STAGE2, name="stage4"), MINI)
    with pytest.raises(HrnetppError, match="'hrnet' has other switches"):
        resolve(STAGE2, MINI, replace(HRNET, se=True))
    assert resolve(STAGE2, MINI, replace(HRNET, name="my-own", se=True)).architecture.se


@pytest.fixture
def path(tmp_path):
    return tmp_path / "recipe.json"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_round_trip(path, profile):
    for run in (*recipe.three_stages(profile, seed=3), *recipe.ablation_runs(profile)):
        write_json(path, run)
        back = recipe.read_recipe(path)
        assert back == run and back.hash == run.hash


def test_a_run_of_whole_numbers_and_lists_is_found_again_by_its_recipe(path):
    run = resolve(replace(STAGE2, alpha=27), replace(MINI, input_hw=[128, 96], heatmap_sigma=2))
    assert run.profile.input_hw == (128, 96) and isinstance(run.stage.alpha, float)
    content = asdict(run)
    content["stage"]["augmentation"]["rotation_bound_deg"] = 90
    path.write_text(json.dumps(content))
    assert recipe.read_recipe(path).name == run.name


# fmt: off
WRONG = {
    "stage.epochs": (0, "5", 2.5, None, True, 10**9), "stage.dataset": ("foo", 1), "stage.loss": ("xyz",),
    "stage.lr_start": ("abc", 10**400, -1.0, 1e39), "stage.alpha": (0,), "stage.coordinates": ("foo",),
    "stage.augmentation": (3,), "stage.augmentation.scale_std": ("x", 1.0, -0.1),
    "stage.augmentation.rotation_std_deg": (1e308, -1), "stage.augmentation.flip_probability": (1.5,),
    "stage.augmentation.half_body_min_keypoints": (-1, 2**32 + 480),
    "profile.precision": ("fp16",), "profile.name": ("../elsewhere", "", "n" * 101, "mini\n"),
    "profile.data": ("foo",), "profile.input_hw": (None, [60, 60], [64], [64.0, 64]),
    "profile.workers": ("two", -1), "profile.boxes": (5,), "profile.batch_size": (0, -8),
    "profile.eval_every": (0,), "profile.heatmap_sigma": (-1,),
    "profile.network.modules": ([1, 1], 1), "profile.network.depth": (4,),
    "architecture.se": ("no", 1), "architecture.name": ("hrnet/../..", "\u00fc"),
    "seed": ("x", -1, 2**63, 2**64), "previous": (7, "../model"),
}
# fmt: on


@pytest.mark.parametrize(("place", "value"), each(WRONG))
def test_a_wrong_value_is_named_with_its_file_and_field(path, place, value):
    content = asdict(recipe.three_stages(SMOKE)[1])
    *way, last = place.split(".")
    reduce(getitem, way, content)[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(HrnetppError) as caught:
        recipe.read_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and last in message and "\n" not in message


def test_fields_of_later_versions_are_named_and_those_of_before_take_their_defaults(path):
    run = resolve(STAGE2, SMOKE)
    content = asdict(run)
    del content["stage"]["coordinates"], content["previous"]
    path.write_text(json.dumps(content))
    assert recipe.read_recipe(path) == run
    content["stage"]["augmentation"]["cutout"] = content["dropout"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(HrnetppError, match="has 'dropout', 'cutout', unknown to this version"):
        recipe.read_recipe(path)


NO_RECIPE = {"a list": b"[]", "a number": b"3", "no fields": b'{"stage": {}}', "nothing": b"", "of it": b"{}"}
NO_RECIPE |= {"torn": b'{"stage": \xff', "NaN": b'{"seed": NaN}', "too large a number": b'{"seed": 1e999}'}
NO_RECIPE |= {"nested": b'{"seed": ' + b"[" * 100_000, "a lone surrogate": b'{"previous": "\\ud800"}'}
NO_RECIPE |= {"too large": b" " * (2**20 + 1)}


@pytest.mark.parametrize("text", NO_RECIPE.values(), ids=NO_RECIPE)
def test_what_is_no_recipe(path, text):
    path.write_bytes(text)
    with pytest.raises(HrnetppError) as caught:
        recipe.read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(HrnetppError, match="recipe.json: there is no such file"):
        recipe.read_recipe(path)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("hrnet+se+head", {"se": True, "subpixel_head": True}),
        ("hrnetpp-head-skips", {"se": True, "avgpool_down": True}),
        ("hrnetpp-avgpool", {"se": True, "skips": True, "subpixel_head": True}),
        ("hrnet+avgpool+conv3x3", {"avgpool_down": True, "downsampling": "conv3x3"}),
        ("hrnet+se+se_bias3+se_r16", {"se": True, "se_bias": 3.0, "se_reduction": 16}),
        ("hrnet+skips+adjacent+skip_bn", {"skips": True, "skip_sources": "adjacent", "skip_bn": True}),
        ("hrnet+head+nearest", {"subpixel_head": True, "head": "nearest"}),
    ],
)
def test_a_name_says_what_is_changed_and_how_it_is_read(path, name, changed):
    architecture = recipe.get_architecture(name)
    assert architecture == replace(HRNET, name=name, **changed)
    HRNet(8, modules=(1, 1, 1), **architecture.arguments)
    write_json(path, resolve(STAGE2, MINI, architecture))
    assert recipe.read_recipe(path).architecture == architecture
    with pytest.raises(HrnetppError, match="other switches than that name stands for"):
        resolve(STAGE2, MINI, replace(HRNET, name=name))


def test_every_reading_of_the_network_has_a_word():
    words = {recipe.get_architecture(f"hrnetpp+{word}") for word in recipe._READINGS}
    for field in ("downsampling", "skip_sources", "head"):
        known = {getattr(one, field) for one in words}
        assert known == {*get_args(get_type_hints(HRNet.__init__)[field])}, field
    sizes = {"base_channels", "num_keypoints", "return", *asdict(recipe.NetworkSize())}
    assert set(get_type_hints(HRNet.__init__)) - sizes == set(HRNET.arguments)


@pytest.mark.parametrize("name", ["", "hrnet-se", "hrnetpp+se", "hrnetpp-conv3x3", "hrnet+se+se", "hrnet+bn"])
def test_names_without_sense_are_refused(name):
    with pytest.raises(HrnetppError, match="unknown architecture.*se, avgpool, skips, head; read otherwise"):
        recipe.get_architecture(name)


def test_a_field_of_a_stage_is_changed_by_its_name_and_told_apart_by_the_hash():
    runs = {resolve(STAGE3, MINI).hash}
    for name, text, value in (
        ("rotation_bound_deg", "45", 45.0),
        ("coordinates", "exact_shift", "exact_shift"),
    ):
        stage = recipe.change_stage(STAGE3, name, text)
        assert {**asdict(stage), **asdict(stage.augmentation)}[name] == value
        runs.add(resolve(stage, MINI).hash)
    control, first = recipe.change_stage(STAGE3, "loss", "heatmap_mse"), resolve(STAGE1, MINI)
    assert control == replace(STAGE3, loss="heatmap_mse") and control.decoder == "quarter_offset"
    grown = recipe.change_stage(STAGE2, "start_scale", "1.5")
    runs |= {resolve(control, MINI).hash, resolve(grown, MINI, previous=first).hash}
    runs |= {resolve(stage, MINI).hash for stage in (STAGE2, grown)}
    runs.add(resolve(STAGE2, MINI, previous=first).hash)
    assert len(runs) == 8


@pytest.mark.parametrize(("name", "text"), [("name", "x"), ("augmentation", "{}"), ("stage", "1"), ("", "")])
def test_a_field_that_no_stage_has_cannot_be_set(name, text):
    with pytest.raises(HrnetppError, match="to set; choose one of dataset, loss.*half_body_min_keypoints"):
        recipe.change_stage(STAGE2, name, text)


@pytest.mark.parametrize("text", ["-1", "fast", "nan", "1e9", ""])
def test_a_value_that_cannot_be_is_refused(text):
    with pytest.raises(HrnetppError, match="start_scale=.*recipe.py says what can be"):
        recipe.change_stage(STAGE2, "start_scale", text)
