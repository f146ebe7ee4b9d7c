"""Readers of COCO and AI Challenger files, the table's operations, and every bad input they must name."""

import hashlib
import json
import time
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrnetpp_lib.data.annotations import (
    PersonTable,
    check_images,
    concat,
    read_ai_challenger,
    read_coco,
    read_coco_detections,
    split_by_image,
)
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.data.records import load_json


def keypoints(count, v=2):
    return [number for k in range(count) for number in (10 + k, 20.5 + k, v)]


def coco_document():
    """Three images; persons 7 (labelled), 8 (crowd), 9 (no keypoints), 10 (outside) and a dog, 11."""
    person = {"category_id": 1, "image_id": 30, "iscrowd": 0, "area": 50.0, "keypoints": keypoints(17)}
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
        (tmp_path / name).write_text(document if isinstance(document, str) else json.dumps(document))
        return tmp_path / name, tmp_path

    return write_json


# -------------------- COCO ground truth


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


def test_coco_keeps_unlabelled_persons_on_request_and_zeroes_unlabelled_keypoints(write):
    table = read_coco(*write(coco_document()), require_keypoints=False)
    assert table.person_ids.tolist() == [7, 9] and table.dropped["no_keypoints"] == 0
    assert table.keypoints[1].tolist() == [[0, 0, 0]] * 17


@pytest.mark.parametrize("size", [{"area": 0}, {"bbox": [1, 1, 0, 5]}, {"bbox": [1, 1, 5, -2]}])
def test_coco_boxes_without_area_are_counted(write, size):
    document = coco_document()
    document["annotations"][0] |= size
    assert read_coco(*write(document)).dropped["empty_box"] == 2


def break_coco(**changes):
    document = coco_document()
    document["annotations"][0] |= changes
    return document


def without(field, part="annotations"):
    document = coco_document()
    del document[part][0][field]
    return document


NAN = float("nan")
BAD_COCO = {
    "a list": ([], "top level must be a dict, found a list"),
    "truncated": (json.dumps(coco_document())[:-30], "truncated or not json"),
    "empty file": ("", "truncated or not json"),
    "no images": ({"annotations": [], "categories": []}, "no list 'images'"),
    "no annotations": (coco_document() | {"annotations": None}, "no list 'annotations'"),
    "annotation no object": (
        coco_document() | {"annotations": ["x"]},
        "'annotations' 0 is no json object",
    ),
    "no person": (coco_document() | {"categories": [{"id": 1, "name": "dog"}]}, r"'person', found \['dog'\]"),
    "category": (break_coco(category_id=2), "id 7.*category_id is not among"),
    "no keypoints": (without("keypoints"), "id 7.*keypoints must be 51 numbers, found None"),
    "no bbox": (without("bbox"), "id 7.*bbox must be 4 numbers, found None"),
    "no area": (without("area"), "id 7.*'area' must be a number, found None"),
    "no id": (without("id"), "'id' must be an integer, found None"),
    "no image_id": (without("image_id"), "'image_id' must be an integer, found None"),
    "no file_name": (without("file_name", "images"), "id 40.*'file_name' must be a text"),
    "no width": (without("width", "images"), "id 40.*'width' must be an integer"),
    "image size": (
        coco_document() | {"images": [{"id": 30, "file_name": "", "height": 0, "width": 9}]},
        "not positive",
    ),
    "short keypoints": (break_coco(keypoints=keypoints(14)), "id 7.*51 numbers, found 42 entries"),
    "text keypoints": (break_coco(keypoints=["1"] * 51), "id 7.*must be 51 numbers"),
    "nan keypoint": (break_coco(keypoints=[NAN, 1, 2] * 17), "id 7.*keypoints holds NaN"),
    "infinite box": (break_coco(bbox=[0, 0, float("inf"), 1]), "id 7.*bbox holds NaN or infinity"),
    "nan area": (break_coco(area=NAN), "id 7.*'area' is not finite"),
    "v": (break_coco(keypoints=keypoints(17, 3)), "id 7.*v is not 0, 1 or 2"),
    "image": (break_coco(image_id=31), "id 7.*image_id is not among"),
    "fractional id": (break_coco(image_id=30.5), "id 7.*must be an integer, found 30.5"),
    "huge id": (break_coco(id=2**70), "64 bits"),
    "twice": (break_coco(id=9), "annotations' 2 .id 9.*id occurs twice"),
    "image twice": (
        coco_document() | {"images": coco_document()["images"][:1] * 2},
        "id 40.*id occurs twice",
    ),
}


@pytest.mark.parametrize("document, message", BAD_COCO.values(), ids=BAD_COCO)
def test_bad_coco_is_named(write, document, message):
    path, folder = write(document)
    with pytest.raises(HrnetppError, match=message) as caught:
        read_coco(path, folder)
    assert str(path) in str(caught.value)


def test_missing_json_and_folder(write):
    path, folder = write(coco_document())
    with pytest.raises(HrnetppError, match=r"nowhere\.json: there is no such annotation file"):
        read_coco(folder / "nowhere.json", folder)
    with pytest.raises(HrnetppError, match="cannot be read"):
        read_coco(folder, folder)
    with pytest.raises(HrnetppError, match="nothing: there is no such image folder"):
        read_coco(path, folder / "nothing")


# -------------------- COCO detections


def detections():
    person = {"category_id": 1, "image_id": 30, "bbox": [1.5, 2, 3, 4], "score": 0.25}
    return [
        person | {"category_id": 18},
        person | {"bbox": [-5, -6, 300, 200]},
        person | {"image_id": 50, "bbox": [1, 2, 0, 4]},
        person | {"image_id": 40, "score": 0.75},
    ]


def read_detections(write, document, **options):
    gt_json, folder = write(coco_document(), "gt.json")
    return read_coco_detections(write(document, "boxes.json")[0], gt_json, folder, **options)


def test_detections_table(write):
    table = read_detections(write, detections())
    assert table.bboxes_xywh.tolist() == [[-5, -6, 300, 200], [1.5, 2, 3, 4]]  # not clipped
    assert table.areas.tolist() == [60000, 12] and table.bbox_scores.tolist() == [0.25, 0.75]
    assert table.person_ids.tolist() == [1, 3] and table.image_index.tolist() == [1, 0]
    assert table.keypoints.shape == (2, 17, 3) and not table.keypoints.any()
    assert table.dropped == {
        "other_category": 1,
        "unknown_image": 0,
        "below_score_threshold": 0,
        "empty_box": 1,
    }


def test_detections_below_the_threshold_are_counted(write):
    table = read_detections(write, detections(), score_threshold=0.5)
    assert table.bbox_scores.tolist() == [0.75] and table.dropped["below_score_threshold"] == 2
    assert len(read_detections(write, detections(), score_threshold=0.75)) == 1  # the threshold itself stays


def test_detections_of_unknown_images(write):
    document = detections() + [detections()[1] | {"image_id": number} for number in range(60, 67)]
    with pytest.raises(
        HrnetppError, match=r"7 image ids are not in .*: 60, 61, 62, 63, 64, \.\.\.; .*allow_"
    ):
        read_detections(write, document)
    table = read_detections(write, document, allow_unknown_images=True)
    assert len(table) == 2 and table.dropped["unknown_image"] == 7


def test_unknown_images_of_other_categories_are_no_error(write):
    table = read_detections(write, detections() + [detections()[0] | {"image_id": 99}])
    assert table.dropped["other_category"] == 2


def test_no_detections(write):
    table = read_detections(write, [])
    assert len(table) == 0 and table.bboxes_xywh.shape == (0, 4) and table.keypoints.shape == (0, 17, 3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": [1, 2, NAN, 3]}, "detection 1 .*NaN"),
        ({"bbox": [1, 2, 3]}, "detection 1 .*4 numbers, found 3 entries"),
        ({"score": NAN}, "detection 1 .*'score' is not finite"),
        ({"score": None}, "detection 1 .*'score' must be a number"),
        ({"image_id": "30"}, "detection 1 .*must be an integer, found '30'"),
        ({"category_id": None}, "detection 1 .*'category_id' must be an integer"),
    ],
)
def test_bad_detections_are_named(write, change, message):
    document = detections()
    document[1] |= change
    with pytest.raises(HrnetppError, match=message):
        read_detections(write, document)


def test_ground_truth_in_place_of_detections(write):
    with pytest.raises(HrnetppError, match="top level must be a list, found a dict"):
        read_detections(write, coco_document())


# -------------------- AI Challenger


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


def test_ai_challenger_keeps_unlabelled_persons_on_request(write):
    table = read_ai_challenger(*write(aic_document()), require_keypoints=False)
    assert table.person_ids.tolist() == [0, 1, 3] and table.dropped == {"empty_box": 1, "no_keypoints": 0}


def test_empty_ai_challenger_file(write):
    assert len(read_ai_challenger(*write([]))) == 0


def break_aic(human=None, image=None, drop=None):
    document = aic_document()
    document[0]["keypoint_annotations"] |= human or {}
    document[0] |= image or {}
    if drop:
        del document[0][drop[0]][drop[1]]
    return document


BAD_AIC = {
    "a dict": ({}, "top level must be a list, found a dict"),
    "no object": ([3], "image 0 is no json object"),
    "no keypoints": (
        break_aic(drop=("keypoint_annotations", "human3")),
        "id abc.*do not name the same humans",
    ),
    "no box": (break_aic(drop=("human_annotations", "human1")), "id abc.*do not name the same humans"),
    "wrong length": (
        break_aic({"human3": keypoints(13, 1)}),
        "id abc.*human3: .*42 numbers, found 39 entries",
    ),
    "v": (break_aic({"human1": keypoints(14, 0)}), "id abc.*human1: a keypoint's v is not 1, 2 or 3"),
    "v 4": (break_aic({"human1": keypoints(14, 4)}), "id abc.*human1: a keypoint's v is not 1, 2 or 3"),
    "nan": (break_aic({"human1": [NAN] * 42}), "id abc.*human1: keypoint_annotations holds NaN"),
    "no image_id": (break_aic(image={"image_id": None}), "'image_id' must be a text"),
    "image_id twice": (aic_document() + aic_document()[1:], "image 2 .id de.*image_id occurs twice"),
    "nan box": (
        break_aic(image={"human_annotations": {"human1": [0, NAN, 1, 1], "human3": [0, 0, 1, 1]}}),
        "human1: human_annotations holds NaN",
    ),
}


@pytest.mark.parametrize("document, message", BAD_AIC.values(), ids=BAD_AIC)
def test_bad_ai_challenger_is_named(write, document, message):
    path, folder = write(document)
    with pytest.raises(HrnetppError, match=message) as caught:
        read_ai_challenger(path, folder)
    assert str(path) in str(caught.value)


# -------------------- the table


def make_table(file_names, persons_per_image, folder="images", ids=None):
    image_index = np.repeat(np.arange(len(file_names)), persons_per_image).astype(np.int32)
    count = len(image_index)
    return PersonTable(
        name=f"table {folder}",
        skeleton=AIC14,
        image_dir=folder,
        image_files=np.array(file_names, np.bytes_),
        image_ids=np.array(ids or file_names, None if ids else np.bytes_),
        image_hw=np.full((len(file_names), 2), -1, np.int32),
        image_index=image_index,
        person_ids=np.arange(count),
        bboxes_xywh=np.arange(4.0 * count).reshape(count, 4),
        bbox_scores=np.ones(count),
        areas=np.ones(count),
        keypoints=np.full((count, 14, 3), 2, np.float32),
        dropped={"crowd": count},
    )


def test_select_takes_indices_and_masks():
    table = make_table(["a.jpg", "b.jpg", "c.jpg"], [1, 2, 1])
    by_index, by_mask = table.select([3, 1]), table.select(np.array([False, True, False, True]))
    assert by_index.person_ids.tolist() == [3, 1] and by_index.image_index.tolist() == [2, 1]
    assert by_mask.person_ids.tolist() == [1, 3] and len(by_mask.image_files) == 3
    assert (
        by_mask.bboxes_xywh.tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]] and by_mask.keypoints.shape[0] == 2
    )


def split_names(table):
    return [{part.image_files[i] for i in part.image_index} for part in split_by_image(table, 4)]


@settings(deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 4), min_size=1, max_size=12),
    st.randoms(),
    st.integers(0, 20),
)
def test_split_holds_out_whole_images_and_no_more_than_needed(images, random, holdout_persons):
    images = list(images.items())
    table = make_table(*zip(*images, strict=True))
    if holdout_persons >= len(table) or len(table) == 0:
        with pytest.raises(HrnetppError, match="none to train on"):
            split_by_image(table, holdout_persons)
        return
    try:
        train, holdout = split_by_image(table, holdout_persons)
    except HrnetppError:
        return  # one image holds all that is left
    assert sorted([*train.person_ids, *holdout.person_ids]) == list(range(len(table)))
    assert not set(train.image_index) & set(holdout.image_index)
    assert len(holdout) >= holdout_persons
    if len(holdout):  # without its last image it would be too few
        last = max(
            {table.image_files[i] for i in holdout.image_index}, key=lambda name: hashlib.sha1(name).digest()
        )
        assert sum(table.image_files[i] != last for i in holdout.image_index) < holdout_persons
    shuffled = images.copy()
    random.shuffle(shuffled)
    again = split_by_image(make_table(*zip(*shuffled, strict=True)), holdout_persons)[1]
    assert {again.image_files[i] for i in again.image_index} == {
        holdout.image_files[i] for i in holdout.image_index
    }


def test_split_does_not_depend_on_folders_and_keeps_equal_names_together():
    names = [f"{number}.jpg" for number in range(9)]
    plain = split_names(make_table(names, [1] * 9))
    moved = split_names(make_table([f"train/{name}" for name in names], [1] * 9))
    assert [{name.split(b"/")[1] for name in part} for part in moved] == plain
    twice = split_names(make_table([f"{folder}/{name}" for folder in "tv" for name in names], [1] * 18))
    bare = [{name.split(b"/")[1] for name in part} for part in twice]
    assert not bare[0] & bare[1] and len(twice[1]) == 2 * len(bare[1])


def test_concat_makes_paths_relative_to_the_common_folder(tmp_path):
    first = make_table(["a.jpg", "b.jpg"], [1, 2], tmp_path / "train" / "images")
    second = make_table(["longer/c.jpg"], [2], tmp_path / "val")
    table = concat([first, second])
    assert table.image_dir == tmp_path.resolve() and len(table) == 5
    assert table.image_files.tolist() == [b"train/images/a.jpg", b"train/images/b.jpg", b"val/longer/c.jpg"]
    assert table.image_index.tolist() == [0, 1, 1, 2, 2] and table.image_index.dtype == np.int32
    assert table.image_path(4) == tmp_path.resolve() / "val" / "longer" / "c.jpg"
    assert table.dropped == {"crowd": 5} and table.keypoints.shape == (5, 14, 3)
    assert table.bboxes_xywh[3:].tolist() == second.bboxes_xywh.tolist()
    assert table.image_ids.tolist() == [b"a.jpg", b"b.jpg", b"longer/c.jpg"]


def test_concat_in_one_folder_keeps_names(tmp_path):
    tables = [make_table([name], [1], tmp_path) for name in ("a.jpg", "b.jpg")]
    assert (
        concat(tables).image_files.tolist() == [b"a.jpg", b"b.jpg"] and concat(tables).image_dir == tmp_path
    )


def test_concat_refuses_what_does_not_belong_together(tmp_path, write):
    with pytest.raises(HrnetppError, match=r"\(coco17\).*\(aic14\)"):
        concat([read_coco(*write(coco_document())), make_table(["a.jpg"], [1], tmp_path)])
    with pytest.raises(HrnetppError, match="one kind of image ids"):
        concat([make_table(["a"], [1], tmp_path), make_table(["a"], [1], tmp_path, ids=[5])])
    with pytest.raises(HrnetppError, match="none"):
        concat([])


def test_check_images_counts_the_missing_ones_that_have_persons(tmp_path):
    names = [f"{number}.jpg" for number in range(8)]
    table = make_table(names, [1, 1, 0, 2, 1, 1, 1, 1], tmp_path)
    for name in names[:2]:
        (tmp_path / name).touch()
    with pytest.raises(
        HrnetppError, match=r"5 of 7 images .* missing: 3.jpg, 4.jpg, 5.jpg, 6.jpg, 7.jpg; "
    ) as caught:
        check_images(table)
    assert "2.jpg" not in str(caught.value) and str(tmp_path) in str(caught.value)
    check_images(table.select([0, 1]))


def test_outlines_are_not_kept_and_numbers_are_packed(write):
    person = load_json(write(coco_document())[0], dict)["annotations"][0]
    assert "segmentation" not in person and isinstance(person["keypoints"], array)


def test_many_persons_take_little_time_and_memory(write):
    document = coco_document()
    template = document["annotations"][0] | {"segmentation": [[1.5] * 60]}
    document["annotations"] = [template | {"id": number} for number in range(20_000)]
    path, folder = write(document)
    start = time.perf_counter()
    table = read_coco(path, folder)
    assert len(table) == 20_000 and time.perf_counter() - start < 10
    arrays = [value for value in vars(table).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in arrays) < 20_000 * 300  # 150,000 persons stay below 45 MB


# -------------------- real files


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
    found = [
        (
            table.image_path(person).name,
            table.bboxes_xywh[person].tolist(),
            table.keypoints[person].ravel().tolist(),
        )
        for person in range(len(table))
    ]
    assert len(found) == 9 and sorted(found) == sorted(expected)


def test_real_ai_challenger_example_counts(real_data):
    folder = real_data / "aic_sample"
    table = read_ai_challenger(
        folder / "official_example" / "keypoint_annotations_example.json", folder / "images"
    )
    assert len(table) == 2761 and len(table.image_files) == 1000 and not any(table.dropped.values())
    assert np.bincount(table.keypoints[..., 2].astype(int).ravel()).tolist() == [5918, 8578, 24158]
    with pytest.raises(HrnetppError, match=r"997 of 1000 images of .* are missing"):
        check_images(table)
    train, holdout = split_by_image(table, 300)
    assert len(train) + len(holdout) == 2761 and 300 <= len(holdout) < 320
