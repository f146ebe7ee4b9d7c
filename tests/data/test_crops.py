"""Crops: what is seen and what is asked for stay together under every augmentation and convention."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from hrnetpp_lib.data import crops, images
from hrnetpp_lib.data.annotations import read_coco
from hrnetpp_lib.data.crops import BoxCrops, Sample, TrainCrops, View, explain_workers
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.geometry import CONVENTIONS, OFFICIAL, UDP, transform_points
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import MINI, STAGE2, Augmentation, resolve

DOTS = {5: (90, 70), 6: (60, 72), 9: (120, 110), 16: (70, 160)}  # keypoint -> image px
RUN = resolve(STAGE2, replace(MINI, input_hw=(128, 96), heatmap_sigma=1.5))
STILL = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def run_of(**stage):
    return replace(RUN, stage=replace(STAGE2, **stage))


def dotted_table(folder, dots=DOTS) -> PersonTable:
    """One person whose labelled keypoints are soft white dots on black."""
    image = np.zeros((200, 180, 3), np.float32)
    y, x = np.mgrid[:200, :180]
    for px, py in dots.values():
        image += 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18.0)[..., None]
    cv2.imwrite(str(folder / "dots.png"), image.clip(0, 255).astype(np.uint8))
    keypoints = np.zeros((1, 17, 3), np.float32)
    for k, point in dots.items():
        keypoints[0, k] = *point, 2
    return PersonTable(
        *("dots", COCO17, folder, np.array([b"dots.png"]), np.array([7]), np.array([[200, 180]], np.int32)),
        *(np.zeros(1, np.int32), np.array([1]), np.array([[40.0, 50.0, 100.0, 130.0]])),
        *(np.ones(1), np.array([13000.0]), keypoints, {}),
    )


def brightest_near(crop: np.ndarray, point: np.ndarray, reach: int = 7) -> np.ndarray:
    """Centre of mass of brightness around a point."""
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    weight = crop[..., 0].astype(float) * (np.hypot(x - point[0], y - point[1]) < reach)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def inner(sample: Sample, margin: int = 8) -> np.ndarray:
    """Labelled keypoints of a sample, well inside the crop."""
    points = sample.keypoints_heatmap * 4
    far = (points > margin).all(axis=1) & (points < np.array([96, 128]) - margin).all(axis=1)
    return np.flatnonzero((sample.keypoint_weight > 0) & far)


def test_keypoints_lie_on_their_dots_whatever_the_augmentation(tmp_path):
    table, seen = dotted_table(tmp_path, {9: (88, 112)}), 0  # a single dot, so that no neighbour pulls
    for epoch in range(12):
        sample = TrainCrops.of_run(table, RUN, epoch)[0]
        for k in inner(sample):
            point = sample.keypoints_heatmap[k] * 4
            assert np.hypot(*(brightest_near(sample.image, point) - point)) < 0.6
            assert np.abs(sample.peaks[k] - sample.keypoints_heatmap[k]).max() <= 0.5 + 1e-5
            seen += 1
    assert seen >= 9
    sample = TrainCrops.of_run(table, run_of(coordinates="udp"), epoch=1)[0]
    point = sample.keypoints_heatmap[9] * UDP.stride_xy((128, 96))
    assert np.hypot(*(brightest_near(sample.image, point) - point)) < 0.6


def test_mirroring_swaps_left_and_right(tmp_path):
    runs = [run_of(augmentation=replace(STILL, flip_probability=p)) for p in (0.0, 1.0)]
    plain, mirrored = (TrainCrops.of_run(dotted_table(tmp_path), run)[0] for run in runs)
    assert np.flatnonzero(plain.target_weight).tolist() == [5, 6, 9, 16]
    assert np.flatnonzero(mirrored.target_weight).tolist() == [5, 6, 10, 15]
    # The person's left wrist (9) is now drawn as a right one (10), at the mirrored place.
    there, here = plain.keypoints_heatmap[9] * 4, mirrored.keypoints_heatmap[10] * 4
    assert here == pytest.approx([96 - there[0], there[1]], abs=1e-4)


def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path):
    twice = dotted_table(tmp_path).select(np.array([0, 0]))
    first, again, other_seed = (TrainCrops.of_run(twice, run, 3) for run in (RUN, RUN, replace(RUN, seed=1)))
    same = again[1]
    assert all(np.array_equal(mine, yours) for mine, yours in zip(first[1], same, strict=True))
    others = [first[0], TrainCrops.of_run(twice, RUN, epoch=4)[1], other_seed[1]]
    assert all(not np.array_equal(other.image, same.image) for other in others)


def test_targets_are_not_rounded_and_weights_end_at_the_border(tmp_path):
    outside = dotted_table(tmp_path, {5: (90, 70), 9: (160, 100)})
    sample = TrainCrops.of_run(outside, run_of(augmentation=STILL))[0]
    assert sample.keypoint_weight.tolist() == [0] * 5 + [1] + [0] * 11
    assert sample.target_weight[9] == 1  # its patch still reaches into the map
    # box 100x130 -> 3:4 means 100x133.3; times 1.25 is 125 px on 96, centre (90, 115)
    assert sample.keypoints_heatmap[5] == pytest.approx([12.0, (64 - 45 * 96 / 125) / 4], abs=1e-4)


def test_views_turn_and_scale_about_the_box(tmp_path):
    table = dotted_table(tmp_path, {9: (90, 115)})  # the box's centre
    views = (View(), View(0.5), View(1.0, 90.0))
    images, matrices = BoxCrops(table, (128, 96), views)[0]
    assert images.shape == (3, 128, 96, 3) and images.dtype == np.uint8 and matrices.shape == (3, 2, 3)
    for crop, matrix in zip(images, matrices, strict=True):
        assert transform_points(np.array([90.0, 115.0]), matrix) == pytest.approx([48, 64])
        assert brightest_near(crop, np.array([48.0, 64.0])) == pytest.approx([48, 64], abs=0.4)
    off_centre = transform_points(np.array([100.0, 115.0]), matrices[1]) - [48, 64]
    assert off_centre == pytest.approx([10 * 96 / 62.5, 0])  # half the box: twice as large
    # Turned by +90 degrees, the image's +x direction is the crop's upward one.
    assert transform_points(np.array([100.0, 115.0]), matrices[2]) == pytest.approx([48, 64 - 10 * 96 / 125])


def test_normalise_by_hand():
    images = torch.zeros(2, 4, 6, 3, dtype=torch.uint8)
    images[1, 2, 5] = torch.tensor([255, 0, 128])
    result = crops.normalise(images)
    assert result.shape == (2, 3, 4, 6) and result.dtype == torch.float32
    expected = [(255 - 123.675) / 58.395, -116.28 / 57.12, (128 - 103.53) / 57.375]
    assert result[1, :, 2, 5].tolist() == pytest.approx(expected, abs=1e-5)


def test_outside_of_the_image_is_black_and_bad_boxes_are_refused(tmp_path):
    image = np.full((20, 30, 3), 200, np.uint8)
    shifted = crops.warp(image, np.array([[1.0, 0.0, 10.0], [0.0, 1.0, 0.0]]), (20, 40))
    assert not shifted[:, :9].any() and (shifted[:19, 11:39] == 200).all()
    with pytest.raises(HrnetppError, match="positive w, h"):
        crops.crops_of_box(image, np.array([1.0, 2.0, 0.0, 5.0]), (64, 32), (View(),), OFFICIAL)


def test_bad_pictures_are_replaced_on_request_and_always_by_the_same_person(tmp_path):
    files, image_index = np.array([b"dots.png", b"torn.jpg"]), np.array([0, 1, 0], np.int32)
    three = dotted_table(tmp_path).select(np.array([0, 0, 0]))
    table = replace(three, image_files=files, image_ids=np.array([7, 8]), image_index=image_index)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(HrnetppError, match="torn.jpg"):
        TrainCrops.of_run(table, RUN)[1]
    samples = TrainCrops.of_run(table, RUN, skip_bad_images=True)
    for epoch in range(8):  # drawn as the first of the sample's random numbers
        samples.set_epoch(epoch)
        random, person = np.random.default_rng((RUN.seed, epoch, 1)), 1
        while person == 1:
            person = random.integers(3)
        assert samples[1].person == person
    samples.set_epoch(0)
    first, again = samples[1], samples[1]
    assert first.bad == 1 and first.person in (0, 2) and again.person == first.person
    assert np.array_equal(first.image, again.image)
    assert samples[0].bad == -1 and samples[0].person == 0
    (tmp_path / "dots.png").unlink()
    with pytest.raises(HrnetppError, match="images in a row cannot be read, first .*torn.jpg"):
        samples[1]


def test_no_more_workers_than_this_process_may_use_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [crops.usable_workers(n) for n in (0, 3, 99)] == [0, 3, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert crops.usable_workers(99) == 2


CARRIED = "Caught HrnetppError in DataLoader worker process 0.\nTraceback\nx.HrnetppError: a.jpg: torn"


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (RuntimeError("DataLoader worker (pid(s) 12, 34) exited"), HrnetppError, r"^gone: \[12, 34\]$"),
        (HrnetppError(CARRIED), HrnetppError, r"^a.jpg: torn$"),
        (HrnetppError("plain"), HrnetppError, "^plain$"),
        (RuntimeError("something else"), RuntimeError, "something else"),
    ],
)
def test_what_ends_a_worker_becomes_one_line(error, kind, message):
    with pytest.raises(kind, match=message), explain_workers(lambda process_ids: f"gone: {process_ids}"):
        raise error


def test_samples_are_the_same_whichever_decoder_and_however_much_of_the_image_is_read(real_data, monkeypatch):
    pytest.importorskip("simplejpeg")
    folder = real_data / "coco_mini"
    table = read_coco(folder / "annotations" / "person_keypoints_train2017.json", folder / "train2017")
    table, heights = table.select(np.arange(0, len(table), 5)), []

    def whole(path, **_):
        return images.read_image(path)

    def watched(path, **wanted):
        image = images.read_image(path, **wanted)
        heights.append(len(image))
        return image

    for convention in CONVENTIONS:
        samples = TrainCrops.of_run(table, run_of(coordinates=convention), epoch=2)
        with monkeypatch.context() as patch:
            patch.setattr(crops, "read_image", whole)
            patch.setattr(images, "simplejpeg", None)
            expected = [samples[index] for index in range(len(table))]
        monkeypatch.setattr(crops, "read_image", watched)
        for index, sample in enumerate(expected):
            assert all(map(np.array_equal, samples[index], sample))
    cut = np.array(heights).reshape(3, -1) < table.image_hw[table.image_index, 0]
    assert 0.3 < cut.mean() < 1


def test_rows_of_a_crop_by_hand():
    assert crops.rows_of_crop(np.array([[2.0, 0, -20], [0, 2, -40]]), (64, 32)) == 52 + 3  # (64 + 40) / 2
    above = np.array([[1.0, 0, 0], [0, 1, 500]])
    assert crops.rows_of_crop(above, (64, 32)) == 1
    quarter_turn = np.array([[0.0, 1, 0], [-1, 0, 90]])  # x of the crop is y of the image
    assert crops.rows_of_crop(quarter_turn, (64, 32)) == 32 + 3
    assert crops.rows_of_crop(np.array([[1e200, 0, 0], [0, 1e200, -1e203]]), (64, 32)) >= 2**31  # overflow


def test_a_fourth_channel_changes_no_crop():
    image = np.random.default_rng(5).integers(0, 256, (60, 90, 4), np.uint8)
    matrix = np.array([[0.7, 0.4, -9.0], [-0.4, 0.7, 20.0]])
    three = crops.warp(np.ascontiguousarray(image[..., :3]), matrix, (48, 36))
    assert three.shape == (48, 36, 3)
    np.testing.assert_array_equal(crops.warp(image, matrix, (48, 36)), three)
