"""Sentences about persons and crops: they agree with numbers counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
from data.test_persons import make_table

from hrnetpp_lib.data import words
from hrnetpp_lib.pose.geometry import crop_matrix
from hrnetpp_lib.pose.keypoints import COCO17


def people(visibilities: list[float]) -> words.PersonTable:
    """Three persons in two images; of each keypoint, in turn, the share of persons that have it labelled."""
    table = make_table(["a.jpg", "b.jpg", "c.jpg"], [1, 2, 0], skeleton=COCO17)
    keypoints = np.zeros((3, 17, 3), np.float32)
    keypoints[:, :, 2] = visibilities
    boxes = np.array([[0, 0, 9, height] for height in (100.0, 110, 200)])
    return replace(table, keypoints=keypoints, bboxes_xywh=boxes)


def test_persons_are_counted_by_the_pictures_that_have_some():
    said = words.say_persons(people([2] * 17))
    assert "3 labelled persons in 2 pictures, 50% of which show one alone" in said
    assert "110 px high (median), 101 to 191 px" in said


def test_labels_name_the_least_and_what_is_never_labelled():
    table = people([0, 0, *[2] * 15])
    table.keypoints[0, 5, 2], table.keypoints[:, 6, 2] = 0, 1  # left shoulder; right shoulder hidden
    said = words.say_labels(table)
    assert said.startswith(
        "Never labelled here: nose, left eye. Of the others the left shoulder is labelled least"
    )
    assert (
        "for 67% of the persons" in said and "for 100%; 6% of all keypoints are labelled but hidden" in said
    )
    assert (
        words.title_labels(table) == "2 of 17 keypoints are never labelled, the others for 98% of the persons"
    )
    whole = people([2] * 17)
    whole.keypoints[:2, 9, 2] = 0
    assert words.say_labels(whole).startswith("The left wrist is labelled least, for 33%")
    assert words.title_labels(whole) == "labelled least: the left wrist, for 33% of the persons"


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", [-70.0, 0.0, 30.0, 90.0])
def test_zoom_and_turn_are_read_from_a_matrix_mirrored_or_not(turn, mirrored):
    plain = crop_matrix(np.array([50.0, 40]), np.array([75.0, 100]), 0.0, (128, 96))
    crop = crop_matrix(np.array([50.0, 40]), np.array([60.0, 80]), -turn, (128, 96))
    if mirrored:
        crop = crop @ np.array([[-1.0, 0, 100], [0, 1, 0], [0, 0, 1]])
    assert words.zoom_and_turn(crop, plain) == pytest.approx((1.25, turn))
    name = words.name_crop((crop, mirrored), plain)
    assert name == f"x1.25, {turn:+.0f}\N{DEGREE SIGN}\n{'mirrored' if mirrored else 'not mirrored'}"
    said = words.say_crops([(plain, False), (crop, mirrored)], plain)
    assert f"Of these 2 crops {int(mirrored)} are mirrored and {1 + (turn == 0)} not turned" in said
    assert f"1.00 to 1.25 times as large as without augmentation, turned by {min(0, turn):+.0f} to" in said


def test_rounding_is_told_in_px_of_the_crop():
    points, cells = np.array([[40.0, 30], [11, 8]]), np.array([[10, 8], [3, 2]])
    said = words.say_rounding(points, cells, (128, 96), (32, 24))
    assert "these 2 keypoints by 1.5 px of the crop on average and by up to 2.0 px" in said
