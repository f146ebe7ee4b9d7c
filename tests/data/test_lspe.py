"""Leeds Sports Pose Extended: quirks of the labels, both layouts of the images, and the converted files."""

import json
import os
import tracemalloc
import zipfile

import cv2
import numpy as np
import pytest
import scipy.io

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco, read_lspe
from hrnetpp_lib.data.layout import DataPaths
from hrnetpp_lib.data.lspe import _TWINS_IN_TRAINING, _boxes, _load_joints, write_lspe
from hrnetpp_lib.data.persons import check_images
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

LSP_NAMES = (
    *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist"),
    *("right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top"),
)
HEIGHT, WIDTH = 60, 80
NOTHING_DROPPED = {"missing_image": 0, "no_keypoints": 0, "keypoint_outside": 0, "keypoint_clipped": 0}
COUNTS = ("ai_challenger_train", "ai_challenger_validation", "coco_train", "coco_val")


def jpeg(height=HEIGHT, width=WIDTH):
    return cv2.imencode(".jpg", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def make_joints(count):
    """(14, 3, count): joint j of image i at (10 + 2 j, 20 + j + i / 4), all labelled."""
    joints = np.ones((14, 3, count))
    joints[:, 0] = 10 + 2 * np.arange(14)[:, None]
    joints[:, 1] = 20 + np.arange(14)[:, None] + np.arange(count) / 4
    return joints


@pytest.fixture
def dataset(tmp_path):
    """The public layout: joints.mat beside images/."""

    def write(joints):
        scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
        (tmp_path / "images").mkdir()
        for number in range(1, joints.shape[2] + 1):
            (tmp_path / "images" / f"im{number:05d}.jpg").write_bytes(jpeg())
        return tmp_path / "joints.mat", tmp_path / "images"

    return write


def convert(joints_mat, images, root):
    """Write all sets below root; counts."""
    return write_lspe(joints_mat, images, DataPaths(root).sets(), skip_missing_images=True)


def read_roles(root):
    """The four tables that training reads from a converted dataset."""
    readers = (read_ai_challenger, read_ai_challenger, read_coco, read_coco)
    return {
        name: read(*files)
        for read, (name, files) in zip(readers, DataPaths(root).sets().items(), strict=True)
    }


def test_keypoints_are_matched_by_name(dataset):
    joints = make_joints(3)
    table = read_lspe(*dataset(joints))
    assert table.skeleton is AIC14 and len(table) == 3
    assert table.image_hw.tolist() == [[HEIGHT, WIDTH]] * 3
    assert table.image_files.tolist() == [b"im00001.jpg", b"im00002.jpg", b"im00003.jpg"]
    for k, name in enumerate(AIC14.names):
        expected = joints[LSP_NAMES.index(name), :2, 2]
        assert table.keypoints[2, k].tolist() == [*expected.astype(np.float32), 2]
    assert not any(table.dropped.values())


def test_the_flag_alone_says_what_is_labelled(dataset):
    joints = make_joints(1)
    joints[0, :, 0] = [30, 31, 0]  # a plausible place, but not labelled
    joints[1, :, 0] = [0, 0, 1]  # the corner, but labelled
    table = read_lspe(*dataset(joints))
    assert table.keypoints[0, AIC14.names.index("right_ankle")].tolist() == [0, 0, 0]
    assert table.keypoints[0, AIC14.names.index("right_knee")].tolist() == [0, 0, 2]
    assert table.keypoints[0, :, 2].sum() == 26


def test_labels_outside_the_image(dataset):
    joints = make_joints(1)
    joints[0, :2, 0] = [-1.75, 30]  # clipped
    joints[1, :2, 0] = [WIDTH + 0.5, HEIGHT + 1]  # clipped to the last pixel
    joints[2, :2, 0] = [40, -2.25]  # too far
    joints[3, :2, 0] = [WIDTH + 146, 30]  # too far
    table = read_lspe(*dataset(joints))
    found = {
        LSP_NAMES.index(name): row.tolist() for name, row in zip(AIC14.names, table.keypoints[0], strict=True)
    }
    assert found[0] == [0, 30, 2] and found[1] == [WIDTH - 1, HEIGHT - 1, 2]
    assert found[2] == found[3] == [0, 0, 0]
    assert table.dropped == NOTHING_DROPPED | {"keypoint_outside": 2, "keypoint_clipped": 2}


def test_people_without_a_usable_label_are_counted(dataset):
    joints = make_joints(3)
    joints[:, 2, 0] = 0
    joints[:, 0, 2] = WIDTH + 146
    table = read_lspe(*dataset(joints))
    assert table.person_ids.tolist() == [2] and table.image_files.tolist() == [b"im00002.jpg"]
    assert table.dropped == NOTHING_DROPPED | {"no_keypoints": 2, "keypoint_outside": 14}


def test_boxes_and_areas():
    keypoints = np.zeros((3, 14, 3))
    keypoints[0, :2] = [[30, 10, 2], [40, 50, 2]]  # 10x40: the margin is at least 5
    keypoints[1, 3:5] = [[20, 40, 2], [140, 100, 2]]  # 120x60: the margin is 12
    keypoints[2, 6:8] = [[3, 2, 2], [76, 58, 2]]  # clipped on all sides
    boxes = _boxes(keypoints, np.array([[100, 200], [110, 200], [60, 80]]))
    assert boxes.tolist() == [[25, 5, 20, 50], [8, 28, 144, 82], [0, 0, 80, 60]]


def test_area_is_a_share_of_the_box(dataset):
    table = read_lspe(*dataset(make_joints(2)))
    np.testing.assert_allclose(table.areas, 0.53 * table.bboxes_xywh[:, 2] * table.bboxes_xywh[:, 3])


def test_folder_and_archives_give_the_same_table(dataset, tmp_path):
    joints_mat, images = dataset(make_joints(5))
    archives = tmp_path / "zipped"
    archives.mkdir()
    for part, numbers in (("a", (1, 2, 3)), ("b", (4, 5))):
        with zipfile.ZipFile(archives / f"{part}.zip", "w") as archive:
            for number in numbers:
                archive.write(images / f"im{number:05d}.jpg", f"im{number:05d}.jpg")
    plain, zipped = read_lspe(joints_mat, images), read_lspe(joints_mat, archives)
    np.testing.assert_array_equal(plain.keypoints, zipped.keypoints)
    np.testing.assert_array_equal(plain.bboxes_xywh, zipped.bboxes_xywh)
    assert plain.image_files.tolist() == zipped.image_files.tolist()


def test_missing_image_is_an_error_or_counted(dataset):
    joints_mat, images = dataset(make_joints(4))
    (images / "im00002.jpg").unlink()
    with pytest.raises(HrnetppError, match=r"1 of the 4 images .* first im00002\.jpg.*skip_missing_images"):
        read_lspe(joints_mat, images)
    table = read_lspe(joints_mat, images, skip_missing_images=True)
    assert table.image_files.tolist() == [b"im00001.jpg", b"im00003.jpg", b"im00004.jpg"]
    assert table.person_ids.tolist() == [1, 3, 4] and table.dropped["missing_image"] == 1
    np.testing.assert_array_equal(table.keypoints[1, 12, 1], np.float32(33.5))  # the head top of image 3
    check_images(table)


def test_broken_image_is_named_even_when_missing_ones_are_skipped(dataset):
    joints_mat, images = dataset(make_joints(2))
    (images / "im00002.jpg").write_bytes(jpeg()[:-20])
    with pytest.raises(HrnetppError, match=r"im00002\.jpg.*truncated"):
        read_lspe(joints_mat, images, skip_missing_images=True)


@pytest.mark.parametrize(
    "joints, message",
    [
        (np.ones((3, 14, 2000)), r"must be \(14, 3, images\), found \(3, 14, 2000\)"),
        (np.where(make_joints(2) == 10, np.nan, make_joints(2)), "image 1 .*not finite"),
        (np.full((14, 3, 2), 2.0), "image 1 .*flag is not 0 or 1"),
    ],
)
def test_joints_that_are_not_what_they_should_be(tmp_path, joints, message):
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    with pytest.raises(HrnetppError, match=message):
        read_lspe(tmp_path / "joints.mat", tmp_path)


def test_joints_mat_missing_or_broken(tmp_path):
    with pytest.raises(HrnetppError, match=r"joints\.mat: there is no such file"):
        read_lspe(tmp_path / "joints.mat", tmp_path)
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": make_joints(50)}, do_compression=True)
    cut = (tmp_path / "joints.mat").read_bytes()[:-20]
    for data in (b"", b"not a matlab file at all" * 20, cut):
        (tmp_path / "joints.mat").write_bytes(data)
        with pytest.raises(HrnetppError, match="no MATLAB 5 file with an array 'joints'"):
            read_lspe(tmp_path / "joints.mat", tmp_path)
    scipy.io.savemat(tmp_path / "joints.mat", {"other": np.ones(3)})
    with pytest.raises(HrnetppError, match="no MATLAB 5 file with an array 'joints'"):
        read_lspe(tmp_path / "joints.mat", tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16, np.uint8])
def test_joints_of_any_kind_are_read_as_scipy_reads_them(tmp_path, kind, compressed):
    joints = np.random.default_rng(0).uniform(0, 255, (14, 3, 5)).astype(kind)
    joints[:, 2] = joints[:, 2] > 100
    content = {"first": np.arange(3), "joints": joints, "x": "text"}
    scipy.io.savemat(tmp_path / "joints.mat", content, do_compression=compressed)
    expected = scipy.io.loadmat(tmp_path / "joints.mat")["joints"].transpose(2, 0, 1)
    np.testing.assert_array_equal(_load_joints(tmp_path / "joints.mat"), expected)


def test_a_complex_number_is_no_joint(tmp_path):
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": make_joints(2) + 1j})
    with pytest.raises(HrnetppError, match="it is complex or sparse"):
        read_lspe(tmp_path / "joints.mat", tmp_path)


def test_a_joints_mat_that_would_fill_memory(tmp_path):
    """An eighth of a megabyte that grows to 128; an endless file; numbers that are packed away in cells."""
    path = tmp_path / "joints.mat"
    scipy.io.savemat(path, {"joints": np.zeros(2**24)}, do_compression=True)
    tracemalloc.start()
    with pytest.raises(HrnetppError, match=r"joints\.mat: .*far larger than the dataset's file"):
        read_lspe(path, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**27 + 2**26
    tracemalloc.stop()
    scipy.io.savemat(path, {"joints": np.array([make_joints(2), "x"], object)})
    with pytest.raises(HrnetppError, match="no MATLAB 5 file with an array 'joints'"):
        read_lspe(path, tmp_path)
    with pytest.raises(HrnetppError, match="no regular file"):
        read_lspe("/dev/zero", tmp_path)


def test_bad_folder_and_archive(dataset, tmp_path, monkeypatch):
    joints_mat, images = dataset(make_joints(1))
    with pytest.raises(HrnetppError, match="nothing: there is no such folder"):
        read_lspe(joints_mat, tmp_path / "nothing")
    (images / "cut.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(HrnetppError, match=r"cut\.zip: not a complete zip"):
        read_lspe(joints_mat, images)
    with zipfile.ZipFile(images / "cut.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("im00001.jpg", bytes(10_000))
    monkeypatch.setattr("hrnetpp_lib.data.lspe.MOST_IMAGE_BYTES", 9_999)
    with pytest.raises(HrnetppError, match=r"cut\.zip: im00001\.jpg in it is damaged \(larger than"):
        read_lspe(joints_mat, images)
    (images / "cut.zip").unlink()
    os.mkfifo(images / "cut.zip")
    with pytest.raises(HrnetppError, match=r"cut\.zip: is no regular file"):
        read_lspe(joints_mat, images)


def test_a_damaged_picture_in_an_archive_is_named_with_it(dataset, tmp_path):
    joints_mat, images = dataset(make_joints(2))
    archives = tmp_path / "zipped"
    archives.mkdir()
    with zipfile.ZipFile(archives / "two.zip", "w") as archive:
        for name in ("im00001.jpg", "im00002.jpg"):
            archive.write(images / name, name)
    content = bytearray((archives / "two.zip").read_bytes())
    content[100] ^= 1  # within the first picture, which is stored as it is
    (archives / "two.zip").write_bytes(content)
    with pytest.raises(HrnetppError, match=r"two\.zip: im00001\.jpg in it is damaged"):
        read_lspe(joints_mat, archives)


def test_a_conversion_with_nobody_in_a_part_is_refused(dataset, tmp_path):
    with pytest.raises(HrnetppError, match="no image for ai_challenger_validation, coco_train, coco_val"):
        convert(*dataset(make_joints(9)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_roles_follow_the_image_number(tmp_path):
    """10,000 labelled persons, of whose images only those at the borders of the roles exist."""
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.tile(make_joints(1), 10_000)})
    numbers = (1, 9, 10, 4999, 5000, 5001, 9000, 9001, 9054, 9055, 9410, 10_000)
    images, root = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in numbers:
        (images / f"im{number:05d}.jpg").write_bytes(jpeg(HEIGHT + number % 7))
    counts = convert(tmp_path / "joints.mat", images, root)
    tables = read_roles(root)
    names = {role: sorted(int(name[2:7]) for name in table.image_files) for role, table in tables.items()}
    assert names == dict(
        zip(COUNTS, ([1, 9, 4999], [10, 5000], [5001, 9000], [9001, 9055, 10_000]), strict=True)
    )
    assert {role: counts[role] for role in COUNTS} == {role: len(table) for role, table in tables.items()}
    assert counts["near_duplicate"] == 2 and counts["missing_image"] == 10_000 - len(numbers)
    for table in tables.values():
        check_images(table)
    assert tables["coco_val"].image_path(0).read_bytes() == (images / "im09001.jpg").read_bytes()


def test_written_files_say_the_same(tmp_path):
    joints = np.tile(make_joints(1), 9001)
    joints[:, :2] += np.arange(9001) % 7
    joints[LSP_NAMES.index("left_knee"), 2, 4] = 0
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    (tmp_path / "images").mkdir()
    for number in (*range(1, 21), 5001, 9001):
        (tmp_path / "images" / f"im{number:05d}.jpg").write_bytes(jpeg())
    convert(tmp_path / "joints.mat", tmp_path / "images", tmp_path / "out")
    source = read_lspe(tmp_path / "joints.mat", tmp_path / "images", skip_missing_images=True)
    aic = read_roles(tmp_path / "out")["ai_challenger_train"]
    assert len(aic) == 18
    kept = source.select((source.person_ids % 10 != 0) & (source.person_ids <= 20))
    np.testing.assert_array_equal(aic.keypoints, kept.keypoints)
    np.testing.assert_allclose(aic.bboxes_xywh, kept.bboxes_xywh, atol=1e-9)


@pytest.fixture(scope="module")
def converted(real_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("lspe")
    folder = real_data / "lspet"
    counts = convert(folder / "joints.mat", folder, root)
    return root, counts


def test_real_conversion(converted, real_data):
    root, counts = converted
    tables = read_roles(root)
    assert counts == {
        "ai_challenger_train": 2250,
        "ai_challenger_validation": 250,
        "coco_train": 4000,
        "coco_val": 494,
        "missing_image": 2500,
        "no_keypoints": 0,
        "keypoint_outside": 1,
        "keypoint_clipped": 5,
        "near_duplicate": 6,
    }
    assert {role: len(table) for role, table in tables.items()} == {role: counts[role] for role in COUNTS}
    for table in tables.values():
        check_images(table)
        assert not any(table.dropped.values())
        labelled = table.keypoints[..., 2] > 0
        last_xy = np.inf if table.skeleton is AIC14 else table.image_hw[table.image_index][:, None, ::-1] - 1
        assert ((table.keypoints[..., :2] >= 0) & (table.keypoints[..., :2] <= last_xy))[labelled].all()
    coco = tables["coco_val"]
    assert (
        not coco.keypoints[:, :5].any() and coco.keypoints[:, 5:, 2].mean() > 1.5
    )  # face never, body mostly


def test_real_knee_of_image_8075_is_unlabelled(converted):
    table = read_roles(converted[0])["coco_train"]
    person = np.flatnonzero(table.person_ids == 8075)[0]
    assert table.keypoints[person, COCO17.names.index("right_knee")].tolist() == [0, 0, 0]
    assert table.image_hw[table.image_index[person]].tolist() == [161, 241]


def test_real_coco_keypoints_are_the_joints_of_the_same_name(converted, real_data):
    joints = scipy.io.loadmat(real_data / "lspet" / "joints.mat")["joints"]
    table = read_roles(converted[0])["coco_val"]
    for person in (0, 17, 300):
        for k in range(5, 17):
            x, y, flag = joints[LSP_NAMES.index(COCO17.names[k]), :, table.person_ids[person] - 1]
            expected = [np.float32(x), np.float32(y), 2] if flag else [0, 0, 0]
            assert table.keypoints[person, k].tolist() == expected


def test_near_duplicates_are_those_of_the_list(real_data):
    pairs = json.loads((real_data / "lspet" / "near_duplicates.json").read_text())
    assert sorted(_TWINS_IN_TRAINING) == sorted(pair["b"] for pair in pairs if pair["b"] > 9000)
    assert all(pair["a"] <= 9000 for pair in pairs)
