"""Whose box is it: overlaps counted by hand, faults of a detector, and the truth in the frame of crops."""

from dataclasses import replace

import numpy as np
import pytest
from data.test_persons import make_table

from hrnetpp_lib.data import overlap
from hrnetpp_lib.data.crops import BoxCrops
from hrnetpp_lib.data.layout import GROUND_TRUTH_BOXES, Metric, StageData
from hrnetpp_lib.pose.geometry import transform_points

A, B = [0.0, 0, 10, 20], [30.0, 0, 10, 20]


def tables(boxes: list[list], people: list[list]) -> StageData:
    """One image for each list of boxes and of people."""
    made = []
    for listed in (boxes, people):
        table = make_table([f"{i}.jpg" for i in range(len(listed))], [len(one) for one in listed])
        made.append(replace(table, bboxes_xywh=np.array(sum(listed, [])).reshape(-1, 4)))
    return StageData(made[1], *made, Metric.AI_CHALLENGER_AP, "made_up.json")


def test_a_box_is_the_persons_that_it_overlaps_most_by_half_or_more():
    near = [1.0, 0, 10, 20]  # 180 of 220 px
    data = tables([[near, [6.0, 0, 10, 20]], [B], []], [[B, A], [A], [A]])
    assert overlap.persons_of_boxes(data.val, data.truth).tolist() == [1, -1, -1]


def test_examples_are_the_first_of_each_kind_and_then_whole_ones():
    boxes = [[A], [A, A], [A, B], [B], [A, B], [A]]
    people = [[A], [A], [A], [A, B], [A, B], [A]]
    examples = overlap.example_images(tables(boxes, people), 4)
    wanted = {
        0: "a box each",
        1: "two boxes for one person",
        2: "a box on nobody",
        3: "a person without a box",
    }
    assert examples == wanted
    assert "with each kind of fault" in overlap.say_examples(examples)
    assert overlap.example_images(tables([[A]] * 3, [[A]] * 3), 2) == dict.fromkeys((0, 1), "a box each")
    assert overlap.say_examples({0: "a box each"}) == "the first pictures of val, where all is well"


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[A], [A, A]], "3 boxes for 3 labelled persons"),
        ([[A], [A, A]], "33% of the persons have none; on a person who has one already: 1 box; on no"),
        ([[A, B], [A, [60, 60, 5, 5]]], "0% of the persons have none; on a person who has one already: 0"),
        ([[A, B], [A, [60, 60, 5, 5]]], "on no labelled person: 1 box."),
    ],
)  # fmt: skip
def test_the_sentence_counts_what_the_boxes_missed_doubled_and_made_up(boxes, words):
    assert words in overlap.say_boxes(tables(boxes, [[A, B], [A]]))


def test_nobody_speaks_of_a_detector_where_boxes_are_the_true_ones():
    data = replace(tables([[A, B]], [[A, B]]), boxes=GROUND_TRUTH_BOXES)
    assert overlap.say_boxes(data).startswith(
        "Here the 2 boxes are the true ones, from the labels: no detector"
    )


def test_the_truth_in_a_crop_lies_where_the_crop_shows_it(real_data):
    from hrnetpp_lib.data.annotations import labelled_persons, read_coco_detections, read_coco_truth

    folder = real_data / "coco_test"
    truth = read_coco_truth(folder / "test_coco.json", folder)
    people = labelled_persons(truth)
    boxes = read_coco_detections(folder / "test_coco_det_AP_H_56.json", truth, folder)
    data = StageData(people, boxes, truth, Metric.COCO_AP, "test_coco_det_AP_H_56.json")
    persons = overlap.persons_of_boxes(boxes, people)
    rows = np.flatnonzero(persons >= 0)[:5]
    nobody = np.flatnonzero(persons < 0)[:1]
    found = overlap.truth_in_crops(data, np.append(rows, nobody), (128, 96))
    assert found.shape == (6, 17, 3) and not found[5].any()
    crops = BoxCrops(boxes, (128, 96))
    for row, pose in zip(rows, found, strict=False):
        true = people.keypoints[persons[row]]
        seen = true[:, 2] > 0
        np.testing.assert_allclose(
            pose[seen, :2], transform_points(true[seen, :2], crops[row][1][0]), atol=1e-6
        )
        assert not pose[~seen].any()
    assert len(np.unique(persons[persons >= 0])) >= 10  # of 12 people a real detector finds most
