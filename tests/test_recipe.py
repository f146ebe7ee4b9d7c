"""The recipe states the report's numbers, and its hash names what decides the weights."""

from dataclasses import replace

import pytest

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import (
    ABLATIONS,
    COCO,
    HRNET,
    MINI,
    PROFILES,
    STAGE1,
    STAGE2,
    STAGE3,
    ablation_runs,
    get_profile,
    resolve,
    three_stages,
)


def test_the_reports_three_stages():
    assert (STAGE1.dataset, STAGE1.loss, STAGE1.epochs, STAGE1.lr_start, STAGE1.lr_end) == (
        *("ai_challenger", "heatmap_mse", 30),
        *(1e-3, 1e-3),
    )
    assert (STAGE2.loss, STAGE2.epochs, STAGE2.lr_start, STAGE2.lr_end) == ("heatmap_mse", 150, 1e-3, 5e-5)
    assert (STAGE3.loss, STAGE3.epochs, STAGE3.lr_start, STAGE3.lr_end) == ("softargmax_l1", 20, 2e-5, 2e-7)
    assert STAGE3.alpha == 60 and STAGE3.decoder == "soft_argmax" and STAGE2.decoder == "quarter_offset"


def test_the_coco_profile_is_the_report_unscaled():
    for run, stage in zip(three_stages(COCO), (STAGE1, STAGE2, STAGE3), strict=True):
        assert run.stage == stage
    assert COCO.input_hw == (384, 288) and COCO.batch_size == 96 and COCO.heatmap_sigma == 3


def test_ablations_are_baseline_each_switch_alone_and_all():
    on = [sum(architecture.switches.values()) for architecture in ABLATIONS]
    assert on == [0, 1, 1, 1, 1, 4]
    runs = ablation_runs(MINI)
    assert len({run.hash for run in runs}) == 6 and all(run.previous is None for run in runs)


def test_hash_follows_what_decides_the_weights_and_nothing_else():
    run = resolve(STAGE2, MINI)
    assert run.hash == resolve(STAGE2, MINI).hash
    assert run.hash == resolve(STAGE2, replace(MINI, workers=7, eval_every=5)).hash
    others = [
        resolve(STAGE2, MINI, HRNET),
        resolve(STAGE2, MINI, seed=1),
        resolve(STAGE2, replace(MINI, batch_size=8)),
        resolve(STAGE2, MINI, epochs=3),
        resolve(STAGE2, MINI, previous=resolve(STAGE1, MINI)),
        resolve(replace(STAGE2, alpha=27), MINI),
        resolve(STAGE2, replace(MINI, synthetic_persons=(10, 10, 10))),
    ]
    assert len({run.hash, *(other.hash for other in others)}) == len(others) + 1


def test_a_changed_first_stage_changes_the_whole_chain():
    first = three_stages(MINI)
    second = three_stages(replace(MINI, epochs=(1, *MINI.epochs[1:])))
    assert not {run.name for run in first} & {run.name for run in second}
    assert [run.previous for run in first] == [None, first[0].name, first[1].name]


def test_every_profile_resolves_and_describes_itself():
    for profile in PROFILES.values():
        for run in three_stages(profile):
            text = run.describe()
            assert (
                run.name in text
                and f"report: {STAGE2.epochs if run.stage.name == STAGE2.name else ''}" in text
            )


def test_unknown_profile_and_field_list_the_valid_ones():
    with pytest.raises(HrnetppError, match="'huge'.*smoke, mini, lspet_cpu, lspet, coco"):
        get_profile("huge")
    with pytest.raises(HrnetppError, match="no field epoch;.*epochs"):
        get_profile("mini", epoch=3)
    assert get_profile("mini", batch_size=4).batch_size == 4


@pytest.mark.parametrize("change", [{"input_hw": (100, 96)}, {"batch_size": 0}, {"heatmap_sigma": 0.0}])
def test_impossible_budgets_are_refused(change):
    with pytest.raises(HrnetppError, match="profile 'mini'"):
        resolve(STAGE2, replace(MINI, **change))
