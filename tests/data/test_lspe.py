"""Leeds Sports Pose Extended: quirks of the labels, both layouts of the images, and the converted files."""

import json
import os
import tracemalloc
import zipfile

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
HEIGHT, WIDTH = 60, 80  # of the pictures that write_source makes
NOTHING_DROPPED = {"missing_image": 0, "no_keypoints": 0, "keypoint_outside": 0, "keypoint_clipped": 0}
SETS = ("ai_challenger_train", "ai_challenger_validation", "coco_train", "coco_val")


def make_joints(count):
    """(14, 3, count): joint j of image i at (10 + 2 j, 20 + j + i / 4), all labelled."""
    joints = np.ones((14, 3, count))
    joints[:, 0] = 10 + 2 * np.arange(14)[:, None]
    joints[:, 1] = 20 + np.arange(14)[:, None] + np.arange(count) / 4
    return joints


def convert(joints_mat, images, root):
    """Write all sets below root, and read them as training does; counts and tables."""
    sets = DataPaths(root).sets()
    counts = write_lspe(joints_mat, images, sets, skip_missing_images=True)
    readers = (read_ai_challenger, read_ai_challenger, read_coco, read_coco)
    return counts, {name: read(*sets[name]) for read, name in zip(readers, SETS, strict=True)}


def test_keypoints_are_matched_by_name(write_source):
    joints = make_joints(3)
    table = read_lspe(*write_source(joints))
    assert table.skeleton is AIC14 and len(table) == 3
    assert table.image_hw.tolist() == [[HEIGHT, WIDTH]] * 3
    assert table.image_files.tolist() == [b"im00001.jpg", b"im00002.jpg", b"im00003.jpg"]
    for k, name in enumerate(AIC14.names):
        expected = joints[LSP_NAMES.index(name), :2, 2]
        assert table.keypoints[2, k].tolist() == [*expected.astype(np.float32), 2]
    assert table.dropped == NOTHING_DROPPED
    np.testing.assert_allclose(table.areas, 0.53 * table.bboxes_xywh[:, 2] * table.bboxes_xywh[:, 3])


def test_the_flag_alone_says_what_is_labelled_and_labels_outside_are_clipped_or_dropped(write_source):
    joints = make_joints(4)
    joints[:, 2, 0] = 0  # nothing labelled
    joints[0, :, 1] = [30, 31, 0]  # a plausible place, but not labelled
    joints[1, :, 1] = [0, 0, 1]  # the corner, but labelled
    joints[0, :2, 2] = [-1.75, 30]  # clipped
    joints[1, :2, 2] = [WIDTH + 0.5, HEIGHT + 1]  # clipped to the last pixel
    joints[2, :2, 2] = [40, -2.25]  # too far
    joints[3, :2, 2] = [WIDTH + 146, 30]  # too far
    joints[:, 0, 3] = WIDTH + 146  # nothing inside
    table = read_lspe(*write_source(joints))
    flags, outside = table.keypoints[:, [AIC14.names.index(name) for name in LSP_NAMES]].tolist()
    assert flags[:2] == [[0, 0, 0], [0, 0, 2]] and all(v == 2 for _, _, v in flags[1:])
    assert outside[:4] == [[0, 30, 2], [WIDTH - 1, HEIGHT - 1, 2], [0, 0, 0], [0, 0, 0]]
    assert table.image_files.tolist() == [b"im00002.jpg", b"im00003.jpg"]
    assert table.person_ids.tolist() == [2, 3]
    expected = {"no_keypoints": 2, "keypoint_outside": 2 + 14, "keypoint_clipped": 2}
    assert table.dropped == NOTHING_DROPPED | expected


def test_boxes():
    keypoints = np.zeros((3, 14, 3))
    keypoints[0, :2] = [[30, 10, 2], [40, 50, 2]]  # 10x40: the margin is at least 5
    keypoints[1, 3:5] = [[20, 40, 2], [140, 100, 2]]  # 120x60: the margin is 12
    keypoints[2, 6:8] = [[3, 2, 2], [76, 58, 2]]  # clipped on all sides
    boxes = _boxes(keypoints, np.array([[100, 200], [110, 200], [60, 80]]))
    assert boxes.tolist() == [[25, 5, 20, 50], [8, 28, 144, 82], [0, 0, 80, 60]]


def test_folder_and_archives_give_the_same_table_and_a_damaged_picture_is_named(write_source, tmp_path):
    joints_mat, images = write_source(make_joints(5))
    (tmp_path / "zipped").mkdir()
    for part, numbers in (("a", (1, 2, 3)), ("b", (4, 5))):
        with zipfile.ZipFile(tmp_path / f"zipped/{part}.zip", "w") as archive:
            for name in [f"im{number:05d}.jpg" for number in numbers]:
                archive.write(images / name, name)
    plain, zipped = read_lspe(joints_mat, images), read_lspe(joints_mat, tmp_path / "zipped")
    assert plain.fingerprint() == zipped.fingerprint()
    content = bytearray((tmp_path / "zipped/a.zip").read_bytes())
    content[100] ^= 1  # within the first picture, which is stored as it is
    (tmp_path / "zipped/a.zip").write_bytes(content)
    with pytest.raises(HrnetppError, match=r"a\.zip: im00001\.jpg in it is damaged"):
        read_lspe(joints_mat, tmp_path / "zipped")


def test_missing_image_is_an_error_or_counted_and_a_broken_one_named(write_source):
    joints_mat, images = write_source(make_joints(4), (1, 3, 4))
    with pytest.raises(HrnetppError, match=r"1 of the 4 images .* first im00002\.jpg.*skip_missing_images"):
        read_lspe(joints_mat, images)
    table = read_lspe(joints_mat, images, skip_missing_images=True)
    assert table.image_files.tolist() == [b"im00001.jpg", b"im00003.jpg", b"im00004.jpg"]
    assert table.person_ids.tolist() == [1, 3, 4] and table.dropped["missing_image"] == 1
    np.testing.assert_array_equal(table.keypoints[1, 12, 1], np.float32(33.5))  # the head top of image 3
    check_images(table)
    (images / "im00003.jpg").write_bytes((images / "im00003.jpg").read_bytes()[:-20])
    with pytest.raises(HrnetppError, match=r"im00003\.jpg.*truncated"):
        read_lspe(joints_mat, images, skip_missing_images=True)


NO_JOINTS = "no MATLAB 5 file with an array 'joints'"


@pytest.mark.parametrize(
    "joints, message, options",
    [
        (np.ones((3, 14, 2000)), r"must be \(14, 3, images\), found \(3, 14, 2000\)", {}),
        (np.where(make_joints(2) == 10, np.nan, make_joints(2)), "image 1 .*not finite", {}),
        (np.full((14, 3, 2), 2.0), "image 1 .*flag is not 0 or 1", {}),
        (make_joints(2) + 1j, "it is complex or sparse", {}),
        (np.ones(3), NO_JOINTS, {"name": "other"}),
        (np.array([make_joints(2), "x"], object), NO_JOINTS, {}),  # numbers that are packed away in cells
    ],
)
def test_joints_that_are_not_what_they_should_be(write_source, joints, message, options):
    with pytest.raises(HrnetppError, match=message):
        read_lspe(*write_source(joints, (), **options))


def test_joints_mat_missing_or_broken(write_source, tmp_path):
    with pytest.raises(HrnetppError, match=r"joints\.mat: there is no such file"):
        read_lspe(tmp_path / "joints.mat", tmp_path)
    path, images = write_source(make_joints(50), (), do_compression=True)
    for data in (b"not a matlab file at all" * 20, path.read_bytes()[:-20]):
        path.write_bytes(data)
        with pytest.raises(HrnetppError, match=NO_JOINTS):
            read_lspe(path, images)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16, np.uint8])
def test_joints_of_any_kind_are_read_as_scipy_reads_them(tmp_path, kind, compressed):
    joints = np.random.default_rng(0).uniform(0, 255, (14, 3, 5)).astype(kind)
    joints[:, 2] = joints[:, 2] > 100
    content = {"first": np.arange(3), "joints": joints, "x": "text"}
    scipy.io.savemat(tmp_path / "joints.mat", content, do_compression=compressed)
    expected = scipy.io.loadmat(tmp_path / "joints.mat")["joints"].transpose(2, 0, 1)
    np.testing.assert_array_equal(_load_joints(tmp_path / "joints.mat"), expected)


def test_a_joints_mat_that_would_fill_memory(write_source):
    """An eighth of a megabyte that grows to 128; an endless file."""
    path, images = write_source(np.zeros(2**24), (), do_compression=True)
    tracemalloc.start()
    with pytest.raises(HrnetppError, match=r"joints\.mat: .*far larger than the dataset's file"):
        read_lspe(path, images)
    assert tracemalloc.get_traced_memory()[1] < 2**27 + 2**26
    tracemalloc.stop()
    with pytest.raises(HrnetppError, match="no regular file"):
        read_lspe("/dev/zero", images)


def test_bad_folder_and_archive(write_source, monkeypatch):
    joints_mat, images = write_source(make_joints(1))
    with pytest.raises(HrnetppError, match="nothing: there is no such folder"):
        read_lspe(joints_mat, images / "nothing")
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


def test_a_conversion_with_nobody_in_a_part_is_refused(write_source, tmp_path):
    with pytest.raises(HrnetppError, match="no image for ai_challenger_validation, coco_train, coco_val"):
        convert(*write_source(make_joints(9)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_roles_follow_the_image_number_and_the_files_say_the_same(write_source, tmp_path):
    """10,000 labelled persons, of whose images only those at the borders of the roles exist."""
    numbers = (1, 9, 10, 4999, 5000, 5001, 9000, 9001, 9054, 9055, 9410, 10_000)
    joints = np.tile(make_joints(1), 10_000)
    joints[:, :2] += np.arange(10_000) % 7
    joints[LSP_NAMES.index("left_knee"), 2, 8] = 0
    joints_mat, images = write_source(joints, numbers)
    counts, tables = convert(joints_mat, images, tmp_path / "out")
    found = [sorted(int(name[2:7]) for name in tables[name].image_files) for name in SETS]
    assert found == [[1, 9, 4999], [10, 5000], [5001, 9000], [9001, 9055, 10_000]]
    assert [counts[name] for name in SETS] == [3, 2, 2, 3]
    assert counts["near_duplicate"] == 2 and counts["missing_image"] == 10_000 - len(numbers)
    for table in tables.values():
        check_images(table)
    assert tables["coco_val"].image_path(0).read_bytes() == (images / "im09001.jpg").read_bytes()
    source, aic = read_lspe(joints_mat, images, skip_missing_images=True), tables["ai_challenger_train"]
    kept = source.select(np.isin(source.person_ids, (1, 9, 4999)))
    np.testing.assert_array_equal(aic.keypoints, kept.keypoints)
    np.testing.assert_allclose(aic.bboxes_xywh, kept.bboxes_xywh, atol=1e-9)


@pytest.fixture(scope="module")
def converted(real_data, tmp_path_factory):
    folder = real_data / "lspet"
    return convert(folder / "joints.mat", folder, tmp_path_factory.mktemp("lspe"))


def test_real_conversion(converted):
    counts, tables = converted
    persons = dict(zip(SETS, (2250, 250, 4000, 494), strict=True))
    left_out = {"missing_image": 2500, "keypoint_outside": 1, "keypoint_clipped": 5, "near_duplicate": 6}
    assert counts == persons | NOTHING_DROPPED | left_out
    assert {name: len(table) for name, table in tables.items()} == persons
    for table in tables.values():
        check_images(table)
        assert not any(table.dropped.values())
        labelled = table.keypoints[..., 2] > 0
        last_xy = np.inf if table.skeleton is AIC14 else table.image_hw[table.image_index][:, None, ::-1] - 1
        assert ((table.keypoints[..., :2] >= 0) & (table.keypoints[..., :2] <= last_xy))[labelled].all()
    face, body = np.split(tables["coco_val"].keypoints[..., 2], [5], axis=1)
    assert not face.any() and body.mean() > 1.5  # never, and mostly
    train = tables["coco_train"].select(tables["coco_train"].person_ids == 8075)
    assert train.keypoints[0, COCO17.names.index("right_knee")].tolist() == [0, 0, 0]
    assert train.image_hw[train.image_index[0]].tolist() == [161, 241]


def test_real_coco_keypoints_are_the_joints_of_the_same_name(converted, real_data):
    joints = scipy.io.loadmat(real_data / "lspet" / "joints.mat")["joints"]
    table = converted[1]["coco_val"]
    for person in (0, 17, 300):
        for k in range(5, 17):
            x, y, flag = joints[LSP_NAMES.index(COCO17.names[k]), :, table.person_ids[person] - 1]
            expected = [np.float32(x), np.float32(y), 2] if flag else [0, 0, 0]
            assert table.keypoints[person, k].tolist() == expected


def test_near_duplicates_are_those_of_the_list(real_data):
    pairs = json.loads((real_data / "lspet" / "near_duplicates.json").read_text())
    assert sorted(_TWINS_IN_TRAINING) == sorted(pair["b"] for pair in pairs if pair["b"] > 9000)
    assert all(pair["a"] <= 9000 for pair in pairs)
