"""The data explorer without a browser: its controls, its samples, and where keypoints lie in a crop."""

from dataclasses import replace

import numpy as np
import pytest

from hrnetpp_lib.explore.data_explorer import DataExplorer, pose_in_crop, sample_crops
from hrnetpp_lib.recipe import SMOKE, STAGE2, Augmentation, resolve

RUN = resolve(STAGE2, SMOKE)
CLICK = {"kind": "click", "from": [0.9, 0.2], "to": [0.9, 0.2], "number": 1}


def data_shown(explorer) -> dict[str, bytes]:
    return {name: getattr(explorer, name).png for name in ("strip", "whole", "samples", "target")}


CHANGES = {
    "reroll": (lambda e: e.reroll.click(), {"samples", "target"}),
    "rotation": (
        lambda e: e.augmentation["rotation_std_deg"].set_trait("value", 90.0),
        {"samples", "target"},
    ),
    "sigma": (lambda e: e.sigma.set_trait("value", 4.0), {"target"}),
    "keypoint": (lambda e: e.keypoint.set_trait("value", 6), {"target"}),
    "visible": (lambda e: e.visible.set_trait("value", False), {"whole"}),
    "person": (lambda e: e.strip.set_trait("gesture", CLICK), {"strip", "samples", "target"}),
}


@pytest.mark.parametrize(("act", "changed"), CHANGES.values(), ids=CHANGES)
def test_data_controls_change_what_they_should(table, act, changed):
    explorer = DataExplorer(table, RUN)
    explorer.keypoint.value = 5
    before = data_shown(explorer)
    act(explorer)
    after = data_shown(explorer)
    assert {name for name in after if after[name] != before[name]} == changed


def test_a_handful_of_crops_can_be_had_again(table):
    first, again, other = (
        [sample.image.tobytes() for sample in sample_crops(table, RUN, 1, reroll)] for reroll in (2, 2, 3)
    )
    assert len(first) == 6 and first == again != other
    assert first[1:] != other[:-1]  # a handful is no moved copy of the one before


@pytest.mark.parametrize("coordinates", ["official", "udp"])
def test_keypoints_lie_on_their_dots_in_the_crop(table, coordinates):
    """Under UDP a cell is 95/23 input px of 96, not 4: at the far edge that is 3 px of difference."""
    still = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    profile = replace(SMOKE, input_hw=(128, 96))
    run = resolve(replace(STAGE2, coordinates=coordinates, augmentation=still), profile)
    table.bboxes_xywh[0] = (20, 55, 130, 125)  # dots at the right and lower edges of the crop
    sample, *_ = sample_crops(table, run, 0, 0)
    pose, labelled = pose_in_crop(sample, run), np.flatnonzero(table.keypoints[0, :, 2])
    assert np.flatnonzero(pose[:, 2] == 2).tolist() == labelled.tolist()
    y, x = np.mgrid[:128, :96]
    for px, py, _ in pose[labelled]:
        weight = sample.image[..., 0] * (np.hypot(x - px, y - py) < 6.0)
        found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
        assert np.hypot(*(found - (px, py))) < 0.5


def test_a_picture_that_has_gone_is_a_message(table):
    explorer = DataExplorer(table, RUN)
    assert not explorer.message.value
    (table.image_dir / "dots.png").unlink()
    before = data_shown(explorer)
    explorer.reroll.click()
    assert "dots.png" in explorer.message.value and data_shown(explorer) == before
