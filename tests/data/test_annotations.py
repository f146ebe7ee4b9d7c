"""Readers of COCO and AI Challenger files, the table's operations, and every bad input they must name."""

import json
import os

import numpy as np
import pytest

from hrnetpp_lib.data.annotations import (
    labelled_persons,
    read_ai_challenger,
    read_coco,
    read_coco_detections,
    read_coco_truth,
    read_image_ids,
    read_person_boxes,
)
from hrnetpp_lib.data.persons import check_images, split_by_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17


def keypoints(count, v=2):
    return [number for k in range(count) for number in (10 + k, 20.5 + k, v)]


def coco_document():
    """Three images; persons 7 (labelled), 8 (crowd), 9 (no keypoints), 10 (outside) and a dog, 11."""
    person = {"category_id": 1, "image_id": 30, "iscrowd": 0, "area": 50.0, "keypoints": keypoints(17)}
    person["num_keypoints"] = 17
    return {
        "images": [
            {"id": 40, "file_name": "forty.jpg", "height": 60, "width": 80},
            {"id": 30, "file_name": "thirty.jpg", "height": 100, "width": 200},
            {"id": 50, "file_name": "fifty.jpg", "height": 90, "width": 70},
        ],
        "annotations": [
            person | {"id": 7, "bbox": [-4, 90.5, 30, 20], "segmentation": [[1, 2, 3, 4, 5, 6]]},
            person | {"id": 8, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            person | {"id": 9, "image_id": 40, "bbox": [1, 2, 3, 4], "keypoints": [5, 6, 0] + [0] * 48},
            person | {"id": 10, "bbox": [200, 5, 10, 10]},
            {"id": 11, "category_id": 18, "image_id": 50, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    }


def aic_document():
    """Two images; human3 comes before human1, whose second keypoint is unlabelled but has coordinates."""
    first = keypoints(14, 1)
    first[3:6] = [99, 98, 3]
    first[6:9] = [-3, 2000, 2]
    return [
        {
            "image_id": "abc",
            "url": "",
            "human_annotations": {"human3": [5, 6, 25, 46], "human1": [0, 1, 10, 21]},
            "keypoint_annotations": {"human1": first, "human3": keypoints(14, 2)},
        },
        {
            "image_id": "de",
            "human_annotations": {"human1": [1, 1, 1, 9], "human2": [0, 0, 3, 4]},
            "keypoint_annotations": {"human1": keypoints(14, 1), "human2": [0, 0, 3] * 14},
        },
    ]


@pytest.fixture
def write(tmp_path):
    def write_json(document, name="a.json"):
        text = document if isinstance(document, str | bytes) else json.dumps(document)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name, tmp_path

    return write_json


def test_coco_table(write):
    path, folder = write(coco_document())
    table = read_coco(path, folder)
    assert len(table) == 1 and table.skeleton is COCO17 and table.name == str(path)
    assert table.dropped == {"other_category": 1, "crowd": 1, "empty_box": 1, "no_keypoints": 1}
    assert table.image_files.tolist() == [b"forty.jpg", b"thirty.jpg", b"fifty.jpg"]
    assert table.image_ids.tolist() == [40, 30, 50] and table.image_ids.dtype == np.int64
    assert table.image_hw.tolist() == [[60, 80], [100, 200], [90, 70]]
    assert table.image_index.tolist() == [1] and table.person_ids.tolist() == [7]
    assert table.image_path(0) == folder / "thirty.jpg"
    # x -4..26 and y 90.5..110.5, cut to the 200x100 image with no pixel taken off
    assert table.bboxes_xywh.tolist() == [[0, 90.5, 26, 9.5]]
    assert table.areas.tolist() == [50] and table.bbox_scores.tolist() == [1]
    assert table.keypoints.shape == (1, 17, 3) and table.keypoints.dtype == np.float32
    assert table.keypoints[0, 16].tolist() == [26, 36.5, 2]
    kept = read_coco(path, folder, require_keypoints=False)
    assert kept.person_ids.tolist() == [7, 9] and kept.dropped["no_keypoints"] == 0
    assert kept.keypoints[1].tolist() == [[0, 0, 0]] * 17  # unlabelled ones lose their coordinates


@pytest.mark.parametrize("size", [{"area": 0}, {"bbox": [1, 1, 0, 5]}, {"bbox": [1, 1, 5, -2]}])
def test_coco_boxes_without_area_are_counted(write, size):
    assert read_coco(*write(changed(**size))).dropped["empty_box"] == 2


def changed(part="annotations", record=0, without=None, **changes):
    """The COCO document with one record changed."""
    document = coco_document()
    document[part][record] |= changes
    document[part][record].pop(without, None)
    return document


def image(**changes):
    return changed("images", 1, **changes)


def edited(find, put):
    """The document as text with one place changed: for what Python's json cannot write."""
    text = json.dumps(coco_document())
    assert find in text
    return text.replace(find, put, 1)


BAD_COCO = {
    "a list": ([], "Expected `object`, got `array`.*COCO ground truth"),
    "truncated": (json.dumps(coco_document())[:-30], "truncated"),
    "empty file": ("", "is empty"),
    "nested where nobody reads": ('{"info": ' + "[" * 100_000 + "]" * 100_000 + "}", "recursion depth"),
    "no utf-8": (json.dumps(coco_document()).encode().replace(b"thirty", b"\xff\xfe"), "utf-8"),
    "no images": ({"annotations": [], "categories": []}, "missing required field `images`"),
    "no annotations": (coco_document() | {"annotations": None}, r"Expected `array`.*\$.annotations"),
    "text": (coco_document() | {"annotations": ["x"]}, r"Expected `object`.*annotations\[0\]"),
    "no person": (coco_document() | {"categories": [{"id": 1, "name": "dog"}]}, "'person', found 'dog'"),
    "category": (changed(category_id=2), "annotation 7: its category_id"),
    "no keypoints": (changed(without="keypoints"), "annotation 7: its keypoints are not 51 numbers"),
    "no num_keypoints": (changed(without="num_keypoints"), "annotation 7: it has no num_keypoints"),
    "no file_name": (changed("images", without="file_name"), "missing required field `file_name`.*images"),
    "image size": (image(height=0), r"Expected `int` >= 1 - at `\$.images\[1\].height`"),
    "image size beyond int32": (image(width=2**32 + 480), r"Expected `int` <= .*images\[1\].width"),
    "short keypoints": (changed(keypoints=keypoints(14)), "annotation 7: its keypoints are not 51"),
    "text keypoints": (changed(keypoints=["1"] * 51), r"Expected `float`, got `str`.*keypoints\[0\]"),
    "nan": (edited("90.5", "NaN"), "malformed"),
    "beyond float32": (edited("90.5", "1e39"), r"Expected `float` <= 16777216.0 .*bbox\[1\]"),
    "400 digits": (edited("90.5", "9" * 400), r"out of range - at `\$.annotations\[0\].bbox\[1\]"),
    "short box": (changed(bbox=[1, 2, 3]), "of length 4.*bbox"),
    "negative area": (changed(area=-1), r"Expected `float` >= 0.*area"),
    "v": (changed(keypoints=keypoints(17, 3)), "annotation 7: a keypoint's v is not 0, 1 or 2"),
    "half v": (changed(keypoints=keypoints(17, 1.5)), "annotation 7: a keypoint's v is not"),
    "image": (changed(image_id=31), "annotation 7: its image_id is not among"),
    "fractional id": (changed(image_id=30.5), "Expected `int`, got `float`"),
    "true id": (changed(image_id=True), "Expected `int`, got `bool`"),
    "huge id": (changed(id=2**63), r"Expected `int` <= .*annotations\[0\].id"),
    "crowd": (changed(iscrowd=2), r"2 - at `\$.annotations\[0\].iscrowd`"),
    "twice": (changed(id=9), "annotation 9: this id occurs twice"),
    "image twice": (image(id=40), "image 40: this id occurs twice"),
    "lone surrogate": (edited("thirty", "\\ud800"), "a.json: "),
    "endless name": (image(file_name="x" * 256), "of length <= 255"),
} | {
    f"no {field}": (changed(without=field), f"missing required field `{field}` - at `.*annotations.0")
    for field in ("bbox", "iscrowd", "area", "id")
}


OUTSIDE = ("../x.jpg", "a/../../x.jpg", "/x.jpg", "..", "a/..", "C:/x.jpg", r"..\x.jpg", r"\\x", "a\0.jpg")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_image_folder_are_refused(write, name):
    with pytest.raises(HrnetppError, match=r"a\.json: .* names no file within the image folder"):
        read_coco(*write(image(file_name=name)))
    with pytest.raises(HrnetppError, match="names no file within"):
        read_ai_challenger(*write(changed_aic(image_id=name)))


def test_other_names_are_kept(write):
    for name in ("a..b.jpg", "..a/b.jpg", "train/ä.jpg", "a.jpg.."):
        assert read_coco(*write(image(file_name=name))).image_files[1].decode() == name


def test_missing_json_and_folder_pipes_and_endless_files(write):
    path, folder = write(coco_document())
    with pytest.raises(HrnetppError, match="nothing: there is no such image folder"):
        read_coco(path, folder / "nothing")
    os.mkfifo(folder / "pipe.json")
    (folder / "zero.json").symlink_to("/dev/zero")
    (folder / "folder.json").mkdir()
    for name in ("pipe", "zero", "folder", "nowhere"):
        problem = "there is no such file; check the path" if name == "nowhere" else "is no regular file"
        with pytest.raises(HrnetppError, match=rf"{name}\.json: {problem}"):
            read_coco(folder / f"{name}.json", folder)


def test_truth_is_the_file_as_it_is(write):
    truth = read_coco_truth(*write(document := changed(record=1, num_keypoints=3)))
    assert truth.person_ids.tolist() == [7, 8, 9, 10] and truth.dropped == {"other_category": 1}
    assert truth.bboxes_xywh[0].tolist() == [-4, 90.5, 30, 20] and truth.keypoints.dtype == np.float64
    assert truth.crowd.tolist() == [False, True, False, False]
    assert truth.num_keypoints.tolist() == [17, 3, 17, 17]  # the file's number, whatever is labelled
    assert truth.keypoints[2, 0].tolist() == [5, 6, 0] and truth.category_id == 1
    table = labelled_persons(truth)
    assert table.fingerprint() == read_coco(*write(document)).fingerprint() and type(table) is not type(truth)


def detections():
    person = {"category_id": 1, "image_id": 30, "bbox": [1.5, 2, 3, 4], "score": 0.25}
    large, empty = {"bbox": [-5, -6, 300, 200]}, {"image_id": 50, "bbox": [1, 2, 0, 4]}
    return [person | own for own in ({"category_id": 18}, large, empty, {"image_id": 40, "score": 0.75})]


def read_detections(write, document, **options):
    gt_json, folder = write(coco_document(), "gt.json")
    return read_coco_detections(write(document, "boxes.json")[0], gt_json, folder, **options)


def test_detections_table(write):
    table = read_detections(write, detections())
    assert table.bboxes_xywh.tolist() == [[-5, -6, 300, 200], [1.5, 2, 3, 4]]  # not clipped
    assert table.areas.tolist() == [60000, 12] and table.bbox_scores.tolist() == [0.25, 0.75]
    assert table.person_ids.tolist() == [1, 3] and table.image_index.tolist() == [1, 0]
    assert table.keypoints.shape == (2, 17, 3) and not table.keypoints.any()
    reasons = ("other_category", "unknown_image", "below_score_threshold", "empty_box")
    assert table.dropped == dict(zip(reasons, (1, 0, 0, 1), strict=True))
    empty = read_detections(write, [])
    assert len(empty) == 0 and empty.bboxes_xywh.shape == (0, 4) and empty.keypoints.shape == (0, 17, 3)
    table = read_detections(write, detections(), score_threshold=0.5)
    assert table.bbox_scores.tolist() == [0.75] and table.dropped["below_score_threshold"] == 2
    assert len(read_detections(write, detections(), score_threshold=0.75)) == 1  # the threshold itself stays


def test_boxes_by_the_name_of_their_picture_or_its_id(write):
    record = {"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4.5], "score": 0.25}
    document = [
        record,
        record | {"category_id": 2},
        record | {"score": 1, "image_id": -7},
        record | {"file_name": "val\\\\a.jpg", "score": 0.5},
        record | {"file_name": "b/a.jpg", "bbox": [0, 0, 9, 9]},
    ]
    found = {key: rows.tolist() for key, rows in read_person_boxes(write(document)[0]).items()}
    assert found == {
        3: [[1, 2, 3, 4.5, 0.25]],
        -7: [[1, 2, 3, 4.5, 1]],
        "a.jpg": [[1, 2, 3, 4.5, 0.5], [0, 0, 9, 9, 0.25]],
    }
    assert read_person_boxes(write([])[0]) == {}
    with pytest.raises(HrnetppError, match=r"a.json: .*bbox.*\[1\].*is it a COCO result list"):
        read_person_boxes(write([record, {"image_id": 3, "category_id": 1, "score": 1}])[0])
    assert read_image_ids(write(coco_document())[0]) == {"forty.jpg": 40, "thirty.jpg": 30, "fifty.jpg": 50}


def test_detections_of_unknown_images(write):
    document = detections() + [detections()[1] | {"image_id": number} for number in range(60, 67)]
    problem = r"7 image ids are not in .*: 60, 61, 62, 63, 64, \.\.\.; .*allow_"
    with pytest.raises(HrnetppError, match=problem):
        read_detections(write, document)
    table = read_detections(write, document, allow_unknown_images=True)
    assert len(table) == 2 and table.dropped["unknown_image"] == 7
    other = read_detections(write, detections() + [detections()[0] | {"image_id": 99}])
    assert other.dropped["other_category"] == 2  # whatever image it is in


def test_the_truth_serves_as_ground_truth_and_its_category_counts(write):
    document = changed(record=4, keypoints=keypoints(17), num_keypoints=17)
    document["categories"] = [{"id": 1, "name": "dog"}, {"id": 18, "name": "person"}]
    path, folder = write(document, "swapped.json")
    boxes = write(detections(), "boxes.json")[0]
    for truth in (path, read_coco_truth(path, folder)):
        table = read_coco_detections(boxes, truth, folder)
        assert table.person_ids.tolist() == [0] and table.dropped["other_category"] == 3
        with pytest.raises(HrnetppError, match=r"1 image ids are not in .*swapped.json: 99"):
            write([detections()[0] | {"image_id": 99}], "boxes.json")
            read_coco_detections(boxes, truth, folder)
        write(detections(), "boxes.json")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": [1, 2, 3]}, r"of length 4.*\$\[1\].bbox"),
        ({"bbox": [1, 2, 1e308, 3]}, r"<= 16777216.0.*\$\[1\].bbox\[2\]"),
        ({"score": None}, r"Expected `float`, got `null`.*\$\[1\].score"),
        ({"image_id": "30"}, r"Expected `int`, got `str`.*\$\[1\].image_id"),
        ({"category_id": None}, r"Expected `int`, got `null`.*\$\[1\].category_id"),
    ],
)
def test_bad_detections_are_named(write, change, message):
    document = detections()
    document[1] |= change
    with pytest.raises(HrnetppError, match=message):
        read_detections(write, document)
    with pytest.raises(HrnetppError, match="Expected `array`, got `object`.*result list"):
        read_detections(write, coco_document())


def test_ai_challenger_table(write):
    path, folder = write(aic_document())
    table = read_ai_challenger(path, folder)
    assert table.skeleton is AIC14 and table.image_files.tolist() == [b"abc.jpg", b"de.jpg"]
    assert table.image_ids.tolist() == [b"abc", b"de"] and table.image_hw.tolist() == [[-1, -1]] * 2
    assert table.bboxes_xywh.tolist() == [[5, 6, 20, 40], [0, 1, 10, 20]]  # the file's order; corners, no + 1
    assert table.areas.tolist() == [800, 200] and table.person_ids.tolist() == [0, 1]
    assert table.keypoints[0, :, 2].tolist() == [1] * 14  # 2 occluded -> 1
    # 1 visible -> 2, 3 unlabelled -> zeros; a label outside the box stays
    assert table.keypoints[1, :3].tolist() == [[10, 20.5, 2], [0, 0, 0], [-3, 2000, 1]]
    assert table.dropped == {"empty_box": 1, "no_keypoints": 1}
    kept = read_ai_challenger(path, folder, require_keypoints=False)
    assert kept.person_ids.tolist() == [0, 1, 3] and kept.dropped == {"empty_box": 1, "no_keypoints": 0}
    assert len(read_ai_challenger(*write([]))) == 0


def changed_aic(poses=None, **changes):
    """The AI Challenger document with poses of its first image replaced (None: left out), or other fields."""
    document = aic_document()
    all_poses = document[0]["keypoint_annotations"] | (poses or {})
    document[0]["keypoint_annotations"] = {human: pose for human, pose in all_poses.items() if pose}
    document[0] |= changes
    return document


BAD_AIC = {
    "a dict": ({}, "Expected `array`, got `object`"),
    "no object": ([3], r"Expected `object`, got `int` - at `\$\[0\]`"),
    "no keypoints": (changed_aic({"human3": None}), "image abc: .*do not name the same humans"),
    "no box": (changed_aic(human_annotations={"human3": [5, 6, 25, 46]}), "image abc: .*not name the same"),
    "wrong length": (
        changed_aic({"human3": keypoints(13, 1)}),
        r"of length >= 42 .*0\].keypoint_annotations",
    ),
    "v": (changed_aic({"human1": keypoints(14, 0)}), "image abc: a keypoint's v is not 1, 2 or 3"),
    "v 4": (changed_aic({"human1": keypoints(14, 4)}), "image abc: a keypoint's v is not 1, 2 or 3"),
    "no image_id": (changed_aic(image_id=None), "Expected `str`, got `null`"),
    "image_id twice": (aic_document() + aic_document()[1:], "image de: this id occurs twice"),
    "huge box": (
        changed_aic(human_annotations={"human1": [0, 1e39, 1, 1], "human3": [0, 0, 1, 1]}),
        r"<= 16777216.0 .*\$\[0\].human_annotations",
    ),
}


@pytest.mark.parametrize(
    "read, document, message",
    [(read_coco, *case) for case in BAD_COCO.values()]
    + [(read_ai_challenger, *case) for case in BAD_AIC.values()],
    ids=[*BAD_COCO, *(f"aic {name}" for name in BAD_AIC)],
)
def test_bad_files_are_named(write, read, document, message):
    path, folder = write(document)
    with pytest.raises(HrnetppError, match=message) as caught:
        read(path, folder)
    assert str(path) in str(caught.value)


def test_real_coco_mini(real_data):
    folder = real_data / "coco_mini"
    arguments = folder / "annotations" / "person_keypoints_train2017.json", folder / "train2017"
    table = read_coco(*arguments)
    assert len(table) == 86 and len(table.image_files) == 80 and len(np.unique(table.image_index)) == 28
    assert table.dropped == {"other_category": 0, "crowd": 5, "empty_box": 0, "no_keypoints": 81}
    assert len(read_coco(*arguments, require_keypoints=False)) == 167
    check_images(table)
    records = {record["id"]: record for record in json.loads(arguments[0].read_text())["annotations"]}
    for person, number in enumerate(table.person_ids):
        record = records[number]
        assert table.image_ids[table.image_index[person]] == record["image_id"]
        np.testing.assert_allclose(table.bboxes_xywh[person], record["bbox"], atol=0.02)
        assert table.areas[person] == record["area"]
        assert table.keypoints[person].ravel().tolist() == record["keypoints"]


def test_real_detections(real_data):
    folder = real_data / "coco_test"
    files = folder / "test_coco_det_AP_H_56.json", folder / "test_coco.json"
    table = read_coco_detections(*files, folder)
    assert len(table) == 118 and len(table.image_files) == 4 and not any(table.dropped.values())
    record = json.loads(files[0].read_text())[0]
    assert table.bboxes_xywh[0].tolist() == record["bbox"] and table.bbox_scores[0] == record["score"]
    assert table.image_path(0).name == "000000000785.jpg"
    check_images(table)
    with pytest.raises(HrnetppError, match="allow_unknown_images"):
        mini = real_data / "coco_mini"
        read_coco_detections(files[0], mini / "annotations" / "person_keypoints_train2017.json", folder)
    assert len(read_coco(files[1], folder)) == 12


def test_real_ai_challenger_sample_equals_its_coco_version(real_data):
    folder = real_data / "aic_sample"
    table = read_ai_challenger(folder / "keypoint_sample_annotations.json", folder / "images")
    check_images(table)
    coco = json.loads((folder / "test_aic_mmpose_coco_style.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    expected = [(names[a["image_id"]], a["bbox"], a["keypoints"]) for a in coco["annotations"]]
    files = [table.image_path(person).name for person in range(len(table))]
    poses = table.keypoints.reshape(len(table), -1).tolist()
    found = list(zip(files, table.bboxes_xywh.tolist(), poses, strict=True))
    assert len(found) == 9 and sorted(found) == sorted(expected)


def test_real_ai_challenger_example_counts(real_data):
    folder = real_data / "aic_sample"
    example = folder / "official_example" / "keypoint_annotations_example.json"
    table = read_ai_challenger(example, folder / "images")
    assert len(table) == 2761 and len(table.image_files) == 1000 and not any(table.dropped.values())
    assert np.bincount(table.keypoints[..., 2].astype(int).ravel()).tolist() == [5918, 8578, 24158]
    with pytest.raises(HrnetppError, match=r"997 of 1000 images of .* are missing"):
        check_images(table)
    train, holdout = split_by_image(table, 300)
    assert len(train) + len(holdout) == 2761 and 300 <= len(holdout) < 320
